"""Features, routers and the router folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from r2v.core import arrays
from r2v.core.errors import ArtifactError
from r2v.core.features import EXTENDED, FEATURES, PAPER, batch, featurise, with_pseudo_entropy, without_logprobs
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


def test_a_folder_from_before_the_ranges_loads_unguarded(guarded, tmp_path):
    router, *_ = guarded
    router.save(tmp_path)
    described = json.loads((tmp_path / "router.json").read_text())
    del described["risk"]["range_2F"], described["outside"]
    (tmp_path / "router.json").write_text(json.dumps(described))
    loaded = load_router(tmp_path)
    assert loaded.model.range_2F is None
    assert loaded.decide(CONTEXT, step(context_length=1e6), Memory(), seed=0).code == "risk_below"
