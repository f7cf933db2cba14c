"""A router's folder is the router: copied anywhere it decides the same, bit for bit; what is damaged is one line."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from r2v.core.agent import sha256_of
from r2v.core.arrays import to_bytes
from r2v.core.errors import ArtifactError, SettingsError, StageError
from r2v.core.features import EXTENDED, FEATURES, PAPER, featurise
from r2v.core.mlp import Calibration, RiskMLP, linear
from r2v.core.reading import FIELDS, ROOM, Reader
from r2v.core.types import Action, Candidate, Context, Features, Member, Memory, Usage
from r2v.learning.labels import failure_rows, labelled_rows
from r2v.learning.settings import RouterSettings
from r2v.maths.calibration import brier, ece
from r2v.maths.stats import auroc
from r2v.routers import BUILT_IN, decide, load_router, router_class
from r2v.routers.base import FittedWith, InnerRouter, RouterBase, features_of, kind_of, own_settings, quantiles
from r2v.routers.conformal import Band
from r2v.routers.fit_data import FitData
from r2v.routers.helper import Mixture
from r2v.routers.heuristic import Heuristic
from r2v.routers.r2v import R2V
from r2v.routers.r2v_paper import R2VPaper
from r2v.routers.recorded import CELLS, Kinds
from r2v.routers.restart import Renewal
from r2v.routers.rules import Rules
from r2v.routers.verifier import VerifierRouter
from r2v.runtime.settings import validated
from toy import Flat, Scored, played_episode, routed, run

HORIZON, EPISODES = 12, 30
RNG = np.random.default_rng(7)


def logistic(names=EXTENDED, seed=1) -> RiskMLP:
    rng = np.random.default_rng(seed)
    mean, std, weights = rng.normal(size=len(names)), rng.uniform(0.5, 2, len(names)), rng.normal(size=len(names))
    return linear(names, mean, std, weights / 4, 0.1, Calibration(1.5, 0.25))


def network(names=EXTENDED, seed=2) -> RiskMLP:
    """Two layers, the first one transposed in memory as it comes from torch."""
    rng = np.random.default_rng(seed)
    inputs = len(names)
    layers = ((rng.normal(size=(16, inputs)).T / 4, rng.normal(size=16)), (rng.normal(size=(16, 1)) / 2, np.array([0.1])))
    table = Calibration(0.8, 0.1, (0.0, 0.3, 1.0), (0.1, 1 / 3, 0.9))
    ends = np.stack([np.full(inputs, -0.7), np.full(inputs, 1.1)])  # steps lie a little outside, and now and then far
    spread = rng.uniform(0.5, 2, inputs)
    return RiskMLP(names, rng.normal(size=inputs), spread, layers, table, {"objective": "decoupled"}, ends)


def square(seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(len(FEATURES) + 1, len(FEATURES) + 1)) / 10
    return made @ made.T


def renewal(share: float) -> Renewal:
    return Renewal(share, 4.0, 9.0, 0.9, 0.1, 3.0, 1 / 3)


def reader(seed: int) -> Reader:
    """Of a few features, a verdict and random words, rounded as a fit rounds them."""
    rng = np.random.default_rng(seed)
    names = ("step_index", "verifier_best", "verdict: tests")

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32).astype(float)

    ends = np.sort(numbers(2, len(FIELDS)), axis=0)
    return Reader(
        names, np.sort(numbers(3, 4), axis=1), numbers(3, 5), numbers(ROOM), ends, 0.1, 0.2, bool(seed % 2), {"m": 0.3}, "m"
    )


def kinds() -> Kinds:
    made = np.random.default_rng(15)
    centre = made.normal(size=(2, CELLS))
    weight, middle = made.uniform(0.5, 2, CELLS), made.normal(size=CELLS) / 99
    return Kinds(("one", "two"), weight, middle, centre, np.array([0.0, 0.01]), np.array([0.02, 0.01]))


PARTS = {
    "random": {"threshold": 0.3},
    "entropy": {"threshold": 0.4},
    "heuristic": {},
    "verifier": {"threshold": 0.6},
    "rules": {"threshold": 0.7},
    "r2v": {"risk": network(), "threshold": 0.5},
    "r2v_paper": {"risk": network(PAPER, 3), "threshold": 0.5},
    "benefit": {"disagreement": network(seed=4), "worth": logistic(seed=5), "threshold": 0.01},
    "helper": {
        "budgets": (0.5, 2.0), "prices": (0.2, 0.1), "values": (logistic(seed=6), network(seed=7)), "threshold": 2.0,
        "mixtures": (Mixture(0.5, 0, None, 0.3, 0.25), Mixture(2.0, 1, 0.2, -0.1, 1 / 3)),
    },
    "query": {"bias": -0.1, "weights": {"red": 1 / 3, "key": -0.7, "box": 0.2}, "threshold": 0.5},
    "cascade": {"disagreement": network(seed=8), "threshold": 0.5},
    "cascade_routing": {
        "disagreement": network(seed=9), "disagreement_later": logistic(seed=10), "threshold": 0.4, "retry_price": 0.03,
    },
    "judge_latch": {"threshold": 0.4},
    "conformal": {
        "risk": network(seed=11), "threshold": 0.2,
        "band": Band(np.linspace(0.3, 0.5, HORIZON), np.full(HORIZON, 1 / 7), np.sort(RNG.normal(size=20))),
    },
    "bandit": {"gain": logistic(seed=12), "inverse_AFF": np.stack([square(1), square(2)]), "bonus": 0.7, "threshold": 0.1},
    "reading": {"estimates": "benefit", "reader": reader(14), "teacher": reader(15), "hands_over": True, "threshold": 0.02},
    "restart": {"risk": network(seed=13), "measured": ((0.2, renewal(0.9)), (0.5, renewal(0.4))), "threshold": 0.5},
    "recorded": {"reader": reader(16), "teacher": reader(17), "kinds": kinds(), "threshold": 0.05},
    "pool_cascade_routing": {
        "disagreement": network(seed=18), "disagreement_later": logistic(seed=19), "members": (Member("medium", 0.3),),
        "disagreement_of": (network(seed=20),), "threshold": 0.4, "retry_price": 0.03,
    },
}  # fmt: skip
"""Of each built-in router: what it was fitted with, made by hand."""
PARTS |= {
    f"pool_{name}": {
        "members": (Member("medium", 0.3), Member("teacher", 1.0)), "threshold": PARTS[name]["threshold"],
        "gains": tuple(InnerRouter(router_class(name)(**{**PARTS[name], **other})) for other in others),
    }
    for name, others in (
        ("benefit", ({"worth": logistic(seed=21)}, {})), ("bandit", ({"gain": logistic(seed=22)}, {})),
    )
}  # fmt: skip
FITTED_WITH = FittedWith(3, HORIZON, "tool_calls", "no_entropy", "ab" * 32)


def make(name: str):
    facts = {"slm": "3-clone", "seed": 1}
    return router_class(name)(name=f"my {name}", fitted_with=FITTED_WITH, facts=facts, **PARTS[name])


def steps(seed: int = 5):
    """(context, features) of the steps of some episodes, values missing here and there."""
    rng = np.random.default_rng(seed)
    for _ in range(EPISODES):
        goal = f"find the {rng.choice(['red', 'green'])} {rng.choice(['key', 'box'])}"
        seen, done = ["a room"], []
        for t in range(HORIZON):
            present = rng.random(len(FEATURES)) < 0.9
            values = np.where(present, rng.normal(0.4, 0.5, len(FEATURES)), 0.0)
            row = Features(tuple(values.tolist()), tuple(present.tolist()))
            proposed = Action(f"open box {rng.integers(9)}")
            verdicts = (("tests", float(rng.random() < 0.5)),) if t % 3 else ()
            yield Context(goal, tuple(seen), tuple(done), HORIZON, proposed, verdicts), row
            seen.append(f"box {t}")
            done.append(Action(f"open box {t}"))


def decisions(router, seed: int = 5) -> list:
    """Of all steps, with memory carried along and a second try where more candidates are wanted."""
    found, memory = [], Memory()
    for i, (context, row) in enumerate(steps(seed)):
        if context.t == 0:
            memory = Memory(calls_left=5, seed=i)
        decision = router.decide(context, row, memory, seed=i)
        found.append(decision)
        if decision.route == "retry":
            decision = router.decide(context, row, replace(memory, retries=1), seed=i + 1_000_000)
            found.append(decision)
        memory = memory.after(decision)
    return found


def test_every_built_in_router_is_here():
    assert set(PARTS) == set(BUILT_IN)
    doubts = {
        "random": None,
        "entropy": "entropy",
        "heuristic": "heuristic",
        "rules": "heuristic",
        "verifier": "verifier_doubt",
        "query": "goal_risk",
        "cascade": "disagreement",
        "cascade_routing": "disagreement",
        "judge_latch": "verifier_doubt",
        "conformal": "mean_risk",
        "benefit": "benefit",
        "helper": "benefit",
        "bandit": "benefit",
        "recorded": "benefit",
        "pool_benefit": "benefit",
        "pool_bandit": "benefit",
        "pool_cascade_routing": "disagreement",
    }
    assert {name: router_class(name).kind for name in BUILT_IN} == {**dict.fromkeys(BUILT_IN, "risk"), **doubts}
    needs = {"benefit": {"answers", "branches"}, "helper": {"answers", "exploration"}, "cascade": {"answers"},
             "cascade_routing": {"answers", "redraws"}, "bandit": {"exploration"}}  # fmt: skip
    needs |= {f"pool_{name}": {*needs[name], "pool"} for name in ("benefit", "bandit", "cascade_routing")}
    routes = {"judge_latch": "takeover", "conformal": "takeover", "query": "takeover", "cascade_routing": "retry escalate",
              "pool_cascade_routing": "retry escalate", "restart": "restart escalate",
              **dict.fromkeys(("reading", "recorded"), "escalate takeover")}  # fmt: skip
    for name in BUILT_IN:
        router = router_class(name)
        assert (router.name, router.needs) == (name, needs.get(name, set()))
        assert router.routes == {"continue", *routes.get(name, "escalate").split()}
        assert re.fullmatch("#[0-9a-f]{6}", router.colour)
    assert re.fullmatch("#[0-9a-f]{6}", RouterBase.colour)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_copied_folder_decides_the_same_bit_for_bit(name, tmp_path):
    router = make(name)
    router.save(tmp_path / "run" / name)
    shutil.copytree(tmp_path / "run" / name, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    loaded = load_router(tmp_path / "elsewhere")
    made = decisions(router)
    assert decisions(loaded) == made
    assert len(made) >= 300 and len({decision.route for decision in made}) > 1, "these steps try too little"
    assert type(loaded) is type(router)
    assert (loaded.name, loaded.threshold, loaded.fitted_with, loaded.facts) == (
        f"my {name}", router.threshold, FITTED_WITH, router.facts,
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "README.md", "router.json", "weights.safetensors",
    ]  # fmt: skip
    loaded.save(tmp_path / "again")
    for file in ("router.json", "weights.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "elsewhere" / file).read_bytes()


def test_a_refit_into_the_same_folder_is_seen_by_the_next_load(tmp_path):
    first, second = (R2V(risk=network(seed=seed), threshold=0.5) for seed in (20, 21))
    first.save(tmp_path)
    assert decisions(load_router(tmp_path)) == decisions(first)
    second.save(tmp_path)
    assert decisions(load_router(tmp_path)) == decisions(second) != decisions(first)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def edit(change):
    def edited(path):
        described = json.loads(path.read_text())
        change(described)
        path.write_text(json.dumps(described))

    return edited


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("router.json", lambda path: path.unlink(), "router.json does not exist"),
        ("weights.safetensors", lambda path: path.unlink(), "weights.safetensors does not exist"),
        ("weights.safetensors", cut, "corrupt"),
        ("router.json", cut, "corrupt"),
        ("router.json", lambda path: path.write_text("[]"), "corrupt"),
        ("router.json", edit(lambda d: d.update(format=3)), "format 3"),
        ("router.json", edit(lambda d: d.pop("format")), "corrupt"),
        ("router.json", edit(lambda d: d.pop("risk")), "corrupt"),
        ("router.json", edit(lambda d: d["risk"].update(mean_F="99")), "corrupt"),
        ("router.json", edit(lambda d: d["risk"].update(names=["luck"])), "corrupt"),
        ("router.json", edit(lambda d: d.update(threshold="high")), "corrupt"),
        ("router.json", edit(lambda d: d["fitted_with"].update(k="three")), "corrupt"),
    ],
)
def test_a_damaged_or_half_folder_is_one_line(tmp_path, file, damage, message):
    make("r2v").save(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(ArtifactError, match=message) as raised:
        load_router(tmp_path)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_no_folder_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match=r"is .*nothing a router folder"):
        load_router(tmp_path / "nothing")


def old_folder(folder, facts) -> RiskMLP:
    """A folder as r2v 0.1 wrote it (format 1), and its model."""
    model = logistic(PAPER, seed=30)
    ((w, b),) = model.layers
    described = {
        "format": 1, "features": list(PAPER), "layers": [[15, 1]], "threshold": 0.45, "facts": facts,
        "calibration": {"slope": 1.5, "bias": 0.25, "x": [], "y": []},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "router.json").write_text(json.dumps(described))
    arrays = {"mean": model.mean_F, "std": model.std_F, "w0": w, "b0": b}
    (folder / "weights.safetensors").write_bytes(to_bytes(arrays))
    return model


def test_a_router_of_r2v_0_1_loads_with_the_conditions_beside_it(tmp_path):
    model = old_folder(tmp_path / "7-fit" / "r2v", {"objective": "decoupled", "rows": 10})
    conditions = {"k": 5, "horizon": 40, "verifier": "household"}
    (tmp_path / "7-fit" / "thresholds.json").write_text(json.dumps({"fitted_with": conditions}))
    loaded = load_router(tmp_path / "7-fit" / "r2v")
    assert isinstance(loaded, R2V)
    assert loaded.fitted_with == FittedWith(5, 40, "household")
    assert loaded.model.facts == {"objective": "decoupled", "rows": 10}
    assert decisions(loaded) == decisions(R2V(name="r2v", risk=model, threshold=0.45))
    (tmp_path / "7-fit" / "thresholds.json").unlink()
    assert load_router(tmp_path / "7-fit" / "r2v").fitted_with is None
    old_folder(tmp_path / "fit-logs", {"objective": "decoupled", "verifier": "tool_calls"})
    assert load_router(tmp_path / "fit-logs").fitted_with == FittedWith(1, 50, "tool_calls")


@pytest.mark.parametrize("facts", [{"penalty": 10.0}, {"objective": "decoupled", "estimates": "the teacher differs"}])
def test_a_part_of_a_router_of_r2v_0_1_is_refused_with_what_to_do(tmp_path, facts):
    old_folder(tmp_path / "benefit", facts)
    with pytest.raises(ArtifactError, match=r"is one part of a router of r2v 0\.1; make its run again: `r2v run") as raised:
        load_router(tmp_path / "benefit")
    assert "\n" not in str(raised.value)


def test_a_router_decides_about_a_step_of_ones_own_agent():
    asked = []

    class Asked(R2V):
        def decide(self, *args, **more):
            asked.append((args, more))

    context, memory = Context("g", ("x",), (), 9), Memory(calls_left=3)
    candidates, router = (Candidate(Action("a"), -1.0, 0.5, Usage()),), Asked(risk=network())
    decide(router, context, candidates, [0.5])
    decide(router, context, candidates, [0.5], memory=memory, seed=7)
    features, context = featurise(context, candidates, [0.5]), replace(context, proposed=Action("a"))
    assert asked == [((context, features, Memory()), {"seed": 0}), ((context, features, memory), {"seed": 7})]


def step(k=5, horizon=16):
    return Context("g", ("x",), (), horizon), [Candidate(Action("a"), -1.0, 0.5, Usage())] * k, [0.5] * k


def test_other_conditions_than_those_of_the_fit_are_said():
    fitted = R2V(risk=network(), threshold=0.5, fitted_with=FittedWith(5, 16, "household", "full", "0" * 64))
    decide(fitted, *step())
    with pytest.warns(UserWarning, match=r"router r2v was fitted with k 5, not 1: its score") as found:
        decide(fitted, *step(k=1))
    assert found[0].filename == __file__  # so that Python shows it once for each place that calls
    with pytest.warns(UserWarning, match="horizon 16, not 40"):
        decide(fitted, *step(horizon=40))
    decide(fitted, *step(k=10), memory=Memory(retries=1))  # with what was drawn before
    with pytest.warns(UserWarning, match="k 5, not 3; verifier household, not this Flat"):
        agent = routed(router=fitted)
    with pytest.warns(UserWarning, match="horizon 16, not 40"):
        asyncio.run(agent.act(step(horizon=40)[0], Memory(), seed=0))
    with pytest.warns(UserWarning, match="horizon 16, not 10"):
        run(agent, horizon=10)
    alike = FittedWith(3, 10, "flat", "full", sha256_of(Flat()))
    assert run(routed(router=replace(fitted, fitted_with=alike))).failure is None


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.5, float("inf")])
def test_no_router_decides_on_a_score_that_is_none(score):
    context, candidates, _ = step(k=2)
    for router in (load_router("recorded"), VerifierRouter(threshold=0.5), Heuristic(threshold=0.5)):
        with pytest.raises(ValueError, match=r"a score of .*: it has to be in \[0, 1\]"):
            decide(router, context, candidates, [score, 0.5])
    assert decide(router, context, candidates, [1 + 1e-9, 0.0]).score is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logp": 3.0}, "a log-probability of 3.0"),
        ({"logp": float("nan")}, "a log-probability of nan"),
        ({"logp": float("-inf")}, "a log-probability of -inf"),
        ({"entropy": float("nan")}, "an entropy of nan"),
        ({"entropy": -1.0}, "an entropy of -1.0"),
    ],
)
def test_no_router_decides_on_a_log_probability_that_is_none(changes, message):
    context, candidates, scores = step(k=1)
    with pytest.raises(ValueError, match=message):
        decide(Rules(), context, [replace(candidates[0], **changes)], scores)


def test_a_slip_of_a_caller_is_one_line():
    context, candidates, scores = step(k=1)
    for wrong, message in (
        ({"observations": ()}, "0 observations with 0 actions"),
        ({"actions": (Action("a"),)}, "1 observations with 1 actions"),
        ({"horizon": 0}, "a horizon of 0 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            decide(Rules(), replace(context, **wrong), candidates, scores)
        with pytest.raises(ValueError, match=message):
            asyncio.run(routed().act(replace(context, **wrong), Memory(), seed=0))
    with pytest.raises(ValueError, match="no candidates"):
        decide(Rules(), context, [], [])
    with pytest.raises(ValueError, match="1 candidates with 2 scores"):
        decide(Rules(), context, candidates, [0.5, 0.5])


def test_what_is_no_router_folder_is_answered_with_what_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("benefit", "r2v"):
        R2V(risk=network(), threshold=0.5).save(tmp_path / "runs/base/7-fit" / name)
    for wrong, message in (
        ("benefit", r"has to be fitted: load its folder, RUN/7-fit/benefit"),
        ("rules", r"a rule without a folder: r2v\.routers\.rules\.Rules\(\)"),
        ("runs/base", r"is a run: load runs/base/7-fit/r2v \(fitted there: benefit, r2v\)"),
        ("runs", r"is runs a router folder\?"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_router(wrong)


class Options(msgspec.Struct):
    size: int = 3


def test_a_routers_own_settings_its_thresholds_and_its_card(tmp_path):
    class Own(R2V):
        name = "own"
        Settings = Options

    assert own_settings(Own, {}) == Options(3) and own_settings(Own, {"size": 4}) == Options(4)
    assert own_settings(R2V, {}) is None
    for router, options, message in (
        (Own, {"zeal": 1, "size": 2}, "own has no setting zeal; known: size"), (Own, {"size": "x"}, "router own: .*int"),
        (R2V, {"size": 1}, "r2v has no setting size; known: none"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=message):
            own_settings(router, options)
    assert quantiles([0.1, 0.2, 0.3, 0.4], [0.0, 0.25, 0.5, 0.6, 1.0]) == [0.4, 0.3, 0.1]
    episode, router = played_episode(), R2V(risk=Scored(lambda f: f.values[FEATURES.index("step_index")]))
    bare = replace(episode.steps[0], choice=replace(episode.steps[0].choice, features=None))
    assert len(features_of(replace(episode, steps=(bare, *episode.steps[1:])))) == 2
    assert router.thresholds([episode], [0.0, 1.0]) == [2.0, 0.0]
    with pytest.raises(ValueError, match="has no threshold yet"):
        _ = router.point
    assert (R2V(risk=network()).model is not None, router.model, kind_of(R2V)) == (True, None, "r2v.routers.r2v:R2V")
    make("r2v").save(tmp_path / "full")
    card = (tmp_path / "full" / "README.md").read_text()
    for line in ("# Router my r2v", "Operating point: 0.5000. It was fitted with 3 candidates a step, a horizon of 12 steps",
                 "the verifier tool_calls:", "- slm: 3-clone", "- objective: decoupled"):  # fmt: skip
        assert line in card
    entropy = router_class("entropy")
    entropy().save(tmp_path / "rule")
    assert "Operating point: 2.0000. It was fitted on nothing." in (tmp_path / "rule" / "README.md").read_text()
    entropy(threshold=None, fitted_with=FittedWith(None, None, None)).save(tmp_path / "open")
    card = (tmp_path / "open" / "README.md").read_text()
    assert "not chosen yet" in card and "varying candidates a step, a horizon of varying steps" in card


def test_what_a_fit_is_given():
    lost = replace(played_episode(), success=False)
    broken = replace(lost, success=None)
    given = FitData([lost, broken], [broken, lost, lost], FITTED_WITH, RouterSettings(), 1, options={"query": {"x": 1}})
    assert (given.rollouts, given.held, given.k, given.horizon) == ([lost], [lost, lost], 3, HORIZON)
    with pytest.raises(SettingsError, match="query has no setting x"):
        given.settings_of(router_class("query"))
    with pytest.raises(StageError, match="teacher's answers"):
        _ = given.disagreement


def test_probabilities_are_fitted_on_the_recorded_and_judged_on_the_held_out_steps():
    won = played_episode()
    lost = replace(run(routed(slm="press red"), seed=2), success=False)
    some = RouterSettings(epochs=1, features="paper")
    parts = {"differs": [[True, False, True]] * 4, "differs_validation": [[False, True, True]] * 2, "facts": {"slm": "x"}}
    given = FitData([won, lost] * 2, [won, lost], FITTED_WITH, some, 4, **parts)
    held = failure_rows([won, lost], PAPER)
    p_N = given.risk.risk(held.x_NF, held.present_NF)
    assert given.quality["r2v"] == {"ece": ece(p_N, held.y_N), "brier": brier(p_N, held.y_N), "auroc": auroc(p_N, held.y_N)}
    assert given.risk.names == PAPER and given.disagreement.names == EXTENDED
    assert given.risk.facts["estimates"] == "the risk that going on with the SLM will fail the episode"
    assert (given.risk.facts["slm"], given.risk.facts["seed"], given.risk.facts["objective"]) == ("x", 4, "decoupled")
    answers = labelled_rows([won, lost], parts["differs_validation"], EXTENDED)
    found = given.disagreement.risk(answers.x_NF, answers.present_NF)
    assert given.quality["cascade"]["brier"] == brier(found, answers.y_N)
    assert R2VPaper.fit(given).risk.facts["objective"] == "paper"
    solved = replace(given, validation=[won, won], quality={})
    assert solved.risk and solved.quality["r2v"]["auroc"] is None


def test_an_agent_sees_a_step_as_its_router_was_fitted(tmp_path):
    from r2v.pipeline.agents import AgentSpec, make_agents
    from r2v.pipeline.settings import RunSettings

    chat = {"kind": "chat", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    settings = validated(RunSettings, {"version": 1, "slm": {"model": chat}, "tasks": {"policy": 0}})
    for view in ("full", "pseudo_entropy"):
        conditions = FittedWith(5, HORIZON, "household", view=view)
        R2V(risk=network(), threshold=0.5, fitted_with=conditions).save(tmp_path / view)
    specs = [AgentSpec("routed", tmp_path, tmp_path / view) for view in ("full", "pseudo_entropy", "full")]
    agents = make_agents(settings, [AgentSpec("routed", tmp_path), *specs])
    assert [agent.models.view for agent in agents] == ["full", "full", "pseudo_entropy", "full"]
    assert agents[0].models is agents[1].models is agents[3].models  # what they do alike is asked once
