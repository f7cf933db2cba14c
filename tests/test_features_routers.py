"""Features, routers and the router folder."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from r2v.core import arrays
from r2v.core.errors import ArtifactError
from r2v.core.features import (
    EXTENDED,
    FEATURES,
    PAPER,
    batch,
    featurise,
    proposing,
    seen_as,
    with_pseudo_entropy,
    without_logprobs,
)
from r2v.core.mlp import Calibration, RiskMLP, linear
from r2v.core.types import Action, Candidate, Context, Features, Memory, Usage
from r2v.learning.labels import Rows
from r2v.learning.router import _network, fit_mlp
from r2v.learning.settings import RouterSettings
from r2v.maths.calibration import ece
from r2v.routers import load_router
from r2v.routers.base import FittedWith
from r2v.routers.entropy import Entropy
from r2v.routers.heuristic import Heuristic
from r2v.routers.r2v import R2V
from r2v.routers.verifier import VerifierRouter
from r2v.studies.ablation_plan import variants


def candidate(text: str, logp: float | None = -1.0, entropy: float | None = 0.7) -> Candidate:
    return Candidate(Action(text), logp, entropy, Usage())


CONTEXT = Context("put a pen on shelf.", ("abc", "Nothing happens.", "abc"), (Action("go to shelf 1"), Action("look")), 40)
CANDIDATES = (
    candidate("go to bed 1", -1.0),
    candidate("go to bed 1", -1.0),
    candidate("look", -4.0),
    candidate("take a 1 from b 1", -2.0),
)
SCORES = (0.6, 0.6, 0.3, 0.9)


def test_an_ablation_leaves_out_the_families_of_its_run():
    def left_out(*families):
        return [
            v.without_family for v in variants(RouterSettings(), with_answers=False, families=families) if v.without_family
        ]

    assert left_out("rot", "flaky+inject") == ["rot", "flaky+inject"] and left_out("flaky") == left_out() == []


def test_the_fifteen_features_of_a_known_step():
    features = dict(zip(FEATURES, featurise(CONTEXT, CANDIDATES, SCORES).values, strict=True))
    mean = sum(SCORES) / 4
    expected = {
        "first_token_entropy": 0.7,
        "verifier_spread": 0.6,
        "verifier_mean": mean,
        "verifier_std": math.sqrt(sum((s - mean) ** 2 for s in SCORES) / 4),
        "verifier_best": 0.9,
        "verifier_worst": 0.3,
        "logp_best": -1.0,
        "logp_mean": -2.0,
        "logp_std": math.sqrt((1 + 1 + 4 + 0) / 4),
        "candidate_consistency": 0.5,
        "semantic_entropy": -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)),
        "horizon_fraction": 2 / 40,
        "step_index": 2.0,
        "context_length": (3 + 16 + 3 + 13 + 4) / 10_000,
        "goal_length": 19 / 1000,
        "last_observation_repeats": 1.0,
        "best_repeats": 0.0,
        "distinct_actions": 1.0,
        "steps_since_new": 1.0,
    }
    for name, value in expected.items():
        assert features[name] == pytest.approx(value), name
    assert len(PAPER) == 15
    assert EXTENDED[:15] == PAPER


GOAL = "Put a red pen in the drawer."  # names put, red, pen and drawer
LOOKING = ("look", "look", "take pen 1", "look")
SIGNALS = [
    (GOAL, ("a red pen",), (), "take pen", {"unseen_words": 0, "last_observation_length": 0.09, "steps_since_new": 0,
     "goal_seen": 0.5, "goal_in_last": 0.5, "goal_in_actions": 0, "chosen_names_goal": 0.25, "steps_since_goal": 0,
     "distinct_actions": 0, "best_repeats": 0}),
    (GOAL, ("a Red pen", "no", "no pen here", "no", "a room"), LOOKING, "look", {"unseen_words": 0.5, "goal_seen": 0.5,
     "goal_in_last": 0, "last_observation_repeats": 0, "repeats_in_last_five": 0.2, "steps_since_new": 0,
     "best_repeats": 3, "distinct_actions": 0.5, "goal_in_actions": 0.25, "steps_since_goal": 1, "chosen_names_goal": 0}),
    (GOAL, ("x",) * 13, ("put red",) + ("wait",) * 11, "wait", {"best_repeats": 5, "last_observation_repeats": 1,
     "repeats_in_last_five": 1, "steps_since_new": 10, "distinct_actions": 1 / 6, "goal_in_actions": 0.5,
     "steps_since_goal": 11, "unseen_words": 0}),
    (GOAL, ("x",) * 18, ("put red",) + ("wait",) * 16, "put red pen drawer",
     {"steps_since_goal": 15, "chosen_names_goal": 1}),
    (GOAL, ("x", "y", "z"), ("wait", "wait"), "wait", {"steps_since_goal": 2, "goal_in_actions": 0, "steps_since_new": 0}),
    (GOAL, ("x", "y z"), ("wait",), "wait", {"unseen_words": 1, "steps_since_new": 0, "steps_since_goal": 1}),
    ("pen", ("x",), (), "pen", {"chosen_names_goal": 1, "goal_seen": 0}),
    ("", ("x", "y", "y y z"), ("wait", "go"), "wait", {"steps_since_goal": 2, "chosen_names_goal": 0, "goal_seen": 0,
     "unseen_words": 1 / 3}),
]  # fmt: skip


@pytest.mark.parametrize(("goal", "seen", "done", "chosen", "expected"), SIGNALS)
def test_the_signals_of_a_text_by_hand(goal, seen, done, chosen, expected):
    context = Context(goal, seen, tuple(map(Action, done)), 40)
    others = (candidate("sing", -0.5), candidate(chosen, -3.0), candidate(chosen, -2.0), candidate("sing", -9.0))
    features = dict(zip(FEATURES, featurise(context, others, (0.1, 0.9, 0.9, 0.1)).values, strict=True))
    assert {name: features[name] for name in expected} == pytest.approx(expected)
    assert (features["chosen_logp"], features["chosen_share"], features["verifier_worst"]) == (-2.0, 0.5, 0.1)


TALE = "it was a dark and stormy night, " * 400


@pytest.mark.parametrize(
    ("seen", "repeats"),
    [
        ((TALE + "a", TALE + "b", TALE + "c"), (0, 0, 0)),
        ((TALE + "a", TALE + "b", TALE + "a"), (1, 0.2, 1)),
        ((TALE + "a", TALE + "bc", TALE + "a" * 3), (0, 0, 0)),
        (("a" + TALE, "b" + TALE, "b" + TALE, "b" + TALE), (1, 0.4, 2)),
    ],
)
def test_repeats_among_long_texts(seen, repeats):
    """Told apart by length, beginning and end."""
    context = Context("a pen", seen, tuple(Action(text) for text in seen[1:]), 40)
    features = dict(zip(FEATURES, featurise(context, CANDIDATES, SCORES).values, strict=True))
    names = ("last_observation_repeats", "repeats_in_last_five", "steps_since_new")
    assert tuple(features[name] for name in names) == pytest.approx(repeats)
    assert features["distinct_actions"] == pytest.approx(len(set(seen[1:])) / len(seen[1:]))


def test_words_that_are_nearly_there_take_no_longer_in_a_longer_text():
    def seconds(characters: int) -> float:
        words = " ".join(f"aaaa{i:x}b" for i in range(characters // 9))
        context = Context("pen aaaab", ("aaaa" * (characters // 4), words), (Action(words),), 40)
        started = time.perf_counter()
        featurise(context, CANDIDATES, SCORES)
        return time.perf_counter() - started

    short, long = (min(seconds(characters) for _ in range(5)) for characters in (30_000, 3_000_000))
    assert long < 20 * short  # all that is read of either is 4,000 characters


def test_what_is_proposed_is_added_to_a_context_and_nothing_is_lost():
    context = replace(CONTEXT, proposed=Action("sing"), verdicts=(("judge", 1.0),))
    assert proposing(context, CANDIDATES, SCORES) == replace(context, proposed=CANDIDATES[3].action)


def test_the_order_of_the_features_is_part_of_every_router_folder():
    assert EXTENDED[15:] == (
        "best_repeats", "last_observation_repeats", "repeats_in_last_five", "distinct_actions", "steps_since_new",
        "last_observation_length", "unseen_words", "chosen_logp", "chosen_share", "chosen_names_goal", "goal_seen",
        "goal_in_last", "goal_in_actions", "steps_since_goal",
    )  # fmt: skip
    assert PAPER == (
        "first_token_entropy", "verifier_spread", "verifier_mean", "verifier_std", "verifier_best", "verifier_worst",
        "logp_best", "logp_mean", "logp_std", "candidate_consistency", "semantic_entropy", "horizon_fraction", "step_index",
        "context_length", "goal_length",
    )  # fmt: skip


def test_views_of_a_step_by_hand():
    step = featurise(CONTEXT, CANDIDATES, SCORES)
    partly = featurise(CONTEXT, [replace(CANDIDATES[0], logp=None), *CANDIDATES[1:]], SCORES)
    assert not any(partly.present[FEATURES.index(name)] for name in ("logp_best", "logp_mean", "logp_std"))
    assert seen_as("full", step, SCORES) == step
    assert seen_as("no_entropy", step, SCORES) == without_logprobs(step)
    pseudo = seen_as("pseudo_entropy", step, (0.0, 0.0, math.log(2)))
    assert pseudo.values[0] == pytest.approx(2 * 0.25 * math.log(4) + 0.5 * math.log(2))
    assert (pseudo.values[1:], pseudo.present[0]) == (without_logprobs(step).values[1:], True)
    x_NF, present_NF = batch([step, partly], ("logp_best", "verifier_best"))
    assert x_NF.tolist() == [[-1.0, 0.9], [0.0, 0.9]] and present_NF.tolist() == [[True, True], [False, True]]


def test_a_calibrated_probability_by_hand():
    logit_N = np.array([-1000.0, 0.0, 1.0])
    p_N = Calibration(slope=2.0, bias=0.5)(logit_N)
    assert p_N == pytest.approx([1 / (1 + math.exp(40)), 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-2.5))], rel=1e-12)
    assert Calibration()(logit_N)[1:] == pytest.approx([0.5, 1 / (1 + math.exp(-1))])
    assert Calibration(x=(0.0, 1.0), y=(0.2, 0.4))(np.zeros(1)) == pytest.approx([0.3])
    assert Calibration()(np.array([1000.0])) == pytest.approx([1 / (1 + math.exp(-40))], rel=1e-17)


def test_a_model_whose_parts_do_not_fit_is_refused():
    ones, layer = np.ones(2), (np.ones((2, 1)), np.zeros(1))
    model = RiskMLP(PAPER[:2], 2 * ones, 4 * ones, (layer,))
    row = Features((10.0, 6.0, *[0.0] * (len(FEATURES) - 2)), (True, False, *[True] * (len(FEATURES) - 2)))
    assert (model.value(row), model.columns, model.standardised(row).tolist()) == (2.0, [0, 1], [2.0, 0.0])
    assert model.score(row) == pytest.approx(1 / (1 + math.exp(-2)))
    for parts in (
        (("luck", PAPER[0]), ones, ones, (layer,)), (PAPER[:2], np.ones(3), ones, (layer,)),
        (PAPER[:2], ones, np.ones(3), (layer,)), (PAPER[:3], np.ones(3), np.ones(3), (layer,)),
        (PAPER[:2], ones, ones, ((np.ones((2, 2)), ones),)), (PAPER[:2], ones, ones, (layer, layer)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"features|fit"):
            RiskMLP(*parts)


def test_closed_models_leave_features_absent():
    closed = featurise(CONTEXT, [replace(c, logp=None, entropy=None) for c in CANDIDATES], SCORES)
    absent = {name for name, present in zip(FEATURES, closed.present, strict=True) if not present}
    assert absent == {"first_token_entropy", "logp_best", "logp_mean", "logp_std", "chosen_logp"}
    assert without_logprobs(featurise(CONTEXT, CANDIDATES, SCORES)) == closed
    pseudo = with_pseudo_entropy(closed, SCORES)
    assert pseudo.present[0]
    assert 0 < pseudo.values[0] <= math.log(4)


def test_a_step_without_candidates_is_an_error():
    with pytest.raises(ValueError, match="0 candidates"):
        featurise(CONTEXT, [], [])


def step(**known: float) -> Features:
    return Features(tuple(known.get(name, 0.0) for name in FEATURES), (True,) * len(FEATURES))


@pytest.mark.parametrize(
    ("entropy", "mean", "asks"),
    [(2.6, 0.9, True), (2.4, 0.9, False), (0.0, 0.39, True), (0.0, 0.41, False), (2.6, 0.1, True)],
)
def test_the_heuristic_at_threshold_one_is_the_papers_rule(entropy, mean, asks):
    router = Heuristic()
    decision = router.decide(CONTEXT, step(first_token_entropy=entropy, verifier_mean=mean), Memory(), seed=0)
    assert (decision.route == "escalate") is asks


def test_entropy_and_verifier_routers():
    assert Entropy().score(step(first_token_entropy=1.5)) == 1.5
    assert VerifierRouter().score(step(verifier_best=0.2)) == pytest.approx(0.8)


def data(n: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 15)) * 3 + 1
    present = np.ones_like(x, dtype=bool)
    present[rng.random(n) < 0.2, 0] = False
    y = (rng.random(n) < 1 / (1 + np.exp(-(x[:, 3] - 1)))).astype(float)
    return Rows(np.where(present, x, 0.0), present, y, rng.integers(1, 5, n), np.arange(n))


@pytest.fixture(scope="module")
def fitted():
    settings = RouterSettings(epochs=12, batch_size=500)
    return fit_mlp(data(4000, 0), data(2000, 1), PAPER, settings, "decoupled", seed=0, facts={"slm": "clone"})


def test_ten_thousand_seven_hundred_and_fifty_five_weights():
    """The authors' count of 10,755 holds two more numbers that are trained beside the network."""
    temperature, dual_multiplier = 1, 1
    network = sum(p.numel() for p in _network(15, RouterSettings()).parameters())
    assert network + temperature + dual_multiplier == 10_755


def test_the_router_learns_and_is_calibrated(fitted):
    held = data(4000, 2)
    p = fitted.risk(held.x_NF, held.present_NF)
    assert ece(p, held.y_N) < 0.05
    assert np.corrcoef(p, held.x_NF[:, 3])[0, 1] > 0.8


def test_numpy_decides_as_torch_trained(fitted):
    torch.manual_seed(3)
    net = _network(15, RouterSettings())
    for _ in range(3):  # batch-norm statistics that are not the defaults
        net(torch.randn(64, 15) * 2 + 1)
    net.eval()
    from r2v.learning.router import _folded

    copy = replace(fitted, layers=_folded(net), mean_F=np.zeros(15), std_F=np.ones(15))
    x = np.random.default_rng(4).normal(size=(200, 15)).astype(np.float32).astype(np.float64)
    with torch.inference_mode():
        expected = net(torch.from_numpy(x).float())[:, 0].numpy()
    assert np.abs(copy.logit(x, np.ones_like(x, dtype=bool)) - expected).max() < 1e-5


def test_a_router_folder_comes_back_and_says_what_it_is(fitted, tmp_path):
    R2V(risk=fitted, threshold=0.25, fitted_with=FittedWith(5, 40, "household")).save(tmp_path)
    router = load_router(tmp_path)
    back = router.risk
    held = data(100, 5)
    assert np.array_equal(back.risk(held.x_NF, held.present_NF), fitted.risk(held.x_NF, held.present_NF))
    assert (router.threshold, back.names) == (0.25, PAPER) and router.fitted_with.k == 5
    assert "0.25" in (tmp_path / "README.md").read_text()
    rows = [Features((*x, *([0.0] * (len(FEATURES) - 15))), (True,) * len(FEATURES)) for x in held.x_NF[:5].tolist()]
    x_NF, present_NF = batch(rows, PAPER)
    assert [back.score(row) for row in rows] == pytest.approx(back.risk(x_NF, present_NF).tolist(), abs=1e-12)


def test_the_weights_are_real_safetensors(fitted, tmp_path):
    from safetensors.numpy import load_file

    R2V(risk=fitted).save(tmp_path)
    theirs, ours = load_file(tmp_path / "weights.safetensors"), arrays.from_file(tmp_path / "weights.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize("damage", ["cut", "flip", "nan", "json", "missing", "format", "feature", "shape"])
def test_damaged_folders_are_one_line_errors(fitted, tmp_path, damage):
    R2V(risk=fitted).save(tmp_path)
    path, described = tmp_path / "weights.safetensors", json.loads((tmp_path / "router.json").read_text())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "flip":
        path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    elif damage == "nan":
        path.write_bytes(path.read_bytes()[:-8] + np.float64(np.nan).tobytes())
    elif damage == "json":
        (tmp_path / "router.json").write_text("{")
    elif damage == "missing":
        path.unlink()
    else:
        changes = {"format": {"format": 99}, "feature": {"risk": {**described["risk"], "names": ["luck"] * 15}},
                   "shape": {"risk": {**described["risk"], "layers": described["risk"]["layers"][1:]}}}  # fmt: skip
        (tmp_path / "router.json").write_text(json.dumps({**described, **changes[damage]}))
    with pytest.raises(ArtifactError) as error:
        load_router(tmp_path)
    assert "\n" not in str(error.value)


def test_arrays_by_hand(tmp_path):
    """The header is padded to 8 bytes; numbers that single precision would round are kept in double."""
    blob = arrays.to_bytes({"a": np.array([[0.5, 2.0]]), "b": np.array([0.1])})
    size = int.from_bytes(blob[:8], "little")
    assert size % 8 == 0 and json.loads(blob[8 : 8 + size]) == {
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "F64", "shape": [1], "data_offsets": [8, 16]},
    }  # fmt: skip
    path = tmp_path / "w.safetensors"

    def read(header: object, body: bytes = bytes(8)) -> dict:
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        return arrays.from_file(path)

    path.write_bytes(blob)
    found = arrays.from_file(path)
    assert found["a"].tolist() == [[0.5, 2.0]] and found["b"].tolist() == [0.1]
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert read({"__metadata__": {"x": "y"}, "a": entry})["a"].tolist() == [0.0, 0.0]
    for wrong, body, message in (
        ({**entry, "shape": [3]}, bytes(8), "a does not fit"),
        ({**entry, "data_offsets": [4, 12]}, bytes(8), "a does not fit"),
        ({**entry, "data_offsets": [-4, 4]}, bytes(8), "corrupt"), (entry, bytes(9), "9 bytes of numbers where .* 8"),
        (entry, np.array([0, np.nan], "<f4").tobytes(), "a holds NaN"), ({**entry, "dtype": "I8"}, bytes(8), "corrupt"),
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match=message):
            read({"a": wrong}, body)


@pytest.fixture(scope="module")
def guarded(fitted):
    low, high = fitted.range_2F[:, FEATURES.index("context_length")]
    return R2V(risk=fitted, threshold=2.0), float(low), float(high)  # no risk reaches the threshold


def test_a_fit_keeps_the_range_of_its_rows_and_clips_to_it(fitted, guarded):
    rows = [data(4000, 0), data(2000, 1)]
    x_NF, present_NF = (np.vstack(parts) for parts in zip(*((r.x_NF, r.present_NF) for r in rows), strict=True))
    assert np.array_equal(fitted.range_2F[0], np.where(present_NF, x_NF, np.inf).min(axis=0))
    _, low, high = guarded
    edge, beyond = (fitted.score(step(context_length=x)) for x in (high, 1e6))
    assert beyond == edge != fitted.score(step(context_length=(low + high) / 2))
    row = np.array([step(context_length=1e6).values[: len(PAPER)]])
    assert fitted.risk(row, np.ones_like(row, dtype=bool))[0] == beyond
    open_ended = replace(fitted, range_2F=None)
    assert open_ended.score(step(context_length=1e6)) != beyond
    assert abs(fitted.standardised(step(context_length=1e6))).max() > 1e4  # drift sees how far it is


@pytest.mark.parametrize(("outside", "route"), [("escalate", "escalate"), ("abstain", "continue"), ("clip", "continue")])
def test_a_step_far_outside_of_the_fit_is_said_to_be_and_not_trusted(guarded, outside, route, tmp_path):
    router, low, high = guarded
    replace(router, outside=outside).save(tmp_path)
    router, span = load_router(tmp_path), high - low
    near, far = (router.decide(CONTEXT, step(context_length=high + share * span), Memory(), seed=0) for share in (0.4, 0.6))
    assert (near.route, near.code) == ("continue", "risk_below")
    assert far.route == route and "context_length" in far.reason
    assert far.code == ("risk_below" if outside == "clip" else "out_of_range")
    below = router.decide(CONTEXT, step(context_length=low - 0.6 * span), Memory(), seed=0)
    assert below.route == route
    unseen = replace(step(context_length=1e6), present=tuple(name != "context_length" for name in FEATURES))
    assert router.decide(CONTEXT, unseen, Memory(), seed=0).code == "risk_below"


def test_a_feature_that_never_varied_is_taken_out_and_not_called_far(fitted):
    range_2F = fitted.range_2F.copy()
    range_2F[:, FEATURES.index("context_length")] = 1.0
    router = R2V(risk=replace(fitted, range_2F=range_2F), threshold=2.0)
    one, other = (router.decide(CONTEXT, step(context_length=x), Memory(), seed=0) for x in (1.0, 50.0))
    assert one == other and one.code == "risk_below"


def test_a_session_longer_than_any_of_the_fit_is_decided_as_at_its_longest(fitted):
    """One feature that counts steps at a time, and a risk that reads it."""
    for name, longest in (("step_index", 30.0), ("horizon_fraction", 0.6)):
        ends = np.array([[0.0], [longest]])
        risk = replace(linear((name,), np.zeros(1), np.ones(1), np.ones(1), 0.0), range_2F=ends)
        edge, beyond = (
            R2V(risk=risk, threshold=0.9).decide(CONTEXT, step(**{name: x}), Memory(), seed=0)
            for x in (longest, 9 * longest)
        )
        assert edge == beyond and beyond.code in ("risk_above", "risk_below")


def test_a_folder_from_before_the_ranges_loads_unguarded(guarded, tmp_path):
    router, *_ = guarded
    router.save(tmp_path)
    described = json.loads((tmp_path / "router.json").read_text())
    del described["risk"]["range_2F"], described["outside"]
    (tmp_path / "router.json").write_text(json.dumps(described))
    loaded = load_router(tmp_path)
    assert loaded.model.range_2F is None
    assert loaded.decide(CONTEXT, step(context_length=1e6), Memory(), seed=0).code == "risk_below"
