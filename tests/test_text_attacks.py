"""What texts that others write do to routers is counted step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r2v.core.features import EXTENDED, FEATURES, OWN, featurise
from r2v.core.fixed import Always
from r2v.core.types import Context, Features
from r2v.evaluation.branches import Branch
from r2v.evaluation.text_attacks import ATTACKS, escalates, steps_of, text_attacks
from r2v.learning.settings import RouterSettings
from r2v.routers.bandit import Bandit
from r2v.routers.base import FittedWith, RouterBase
from r2v.routers.benefit import fit_worth
from r2v.routers.fit_data import FitData
from r2v.routers.helper import Helper
from r2v.routers.random import Random
from toy import Flat, ThresholdRouter, routed, run

LENGTH = FEATURES.index("last_observation_length")


def long(features: Features) -> float:
    return features.values[LENGTH]


def episodes():
    """Whose teacher is asked wherever the newest text is longer than 15 characters: at the first step."""
    return [run(routed(router=ThresholdRouter("long", long, 0.15)), seed=seed) for seed in range(6)]


def test_steps_are_those_that_the_router_decided_spread_over_its_episodes():
    played = episodes()
    steps = steps_of(played, 10, 1000)
    asked = [step for e in played for step in e.steps if step.choice.source == "teacher"]
    assert len(steps) == sum(len(e.steps) for e in played) and len(asked) == 6
    few = steps_of(played, 10, 4)
    assert 3 <= sum(escalates(ThresholdRouter("long", long, 0.15), "full", Flat(), step) for step in few) <= 4
    assert all(context.t == len(memory.decisions) for context, _, memory, _ in steps)
    assert steps_of([], 10, 4) == []


def test_a_router_that_draws_draws_as_it_did_when_it_played():
    router = Random(threshold=0.5)
    steps = steps_of([run(routed(router=router), seed=seed) for seed in range(12)], 10, 1000)
    found = text_attacks(router, "full", Flat(), steps)
    others, asked = found["orders"]["steps"]
    assert others > 10 and asked > 10 and asked == sum(escalates(router, "full", Flat(), step) for step in steps[-asked:])
    assert all(rates["bought"] == rates["suppressed"] == 0 for rates in found.values())


def test_calls_that_texts_buy_and_suppress_are_counted_apart():
    steps = steps_of(episodes(), 10, 10)
    up = text_attacks(ThresholdRouter("long", long, 0.15), "full", Flat(), steps)
    assert set(up) == set(ATTACKS)
    assert up["3 kB of words"]["bought"] == 1.0 and up["3 kB of words"]["suppressed"] == 0.0
    assert up["a goal of 20 goals"]["bought"] == 0.0
    down = text_attacks(ThresholdRouter("short", lambda f: -long(f), -0.15), "full", Flat(), steps)
    assert down["3 kB of words"]["suppressed"] == 1.0 and down["3 kB of words"]["bought"] == 0.0
    others, asked = up["orders"]["steps"]
    assert (others, asked) == (len(steps) - 6, 6)
    never = text_attacks(ThresholdRouter("never", lambda f: 0.0, 1.0), "full", Flat(), steps)
    assert never["orders"]["suppressed"] is None and never["orders"]["bought"] == 0.0


def test_the_verifier_scores_the_changed_text():
    class Reads:
        async def score(self, context: Context, actions) -> tuple[float, ...]:
            return (0.0 if "SYSTEM" in context.observations[-1] else 1.0,) * len(actions)

    best = FEATURES.index("verifier_best")
    router = ThresholdRouter("trusts", lambda f: f.values[best], 0.5)
    steps = steps_of(episodes(), 10, 5)
    assert text_attacks(router, "full", Reads(), steps)["orders"]["suppressed"] == 1.0


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_changes_what_others_write_and_nothing_else(kind):
    context = Context("find a red key", ("a room with a box", "you see a lamp"), (), 10)
    changed = ATTACKS[kind](context)
    assert changed != context and changed.actions == context.actions and changed.horizon == context.horizon
    assert changed.observations[:-1] == context.observations[:-1] and changed == ATTACKS[kind](context)


@pytest.mark.parametrize("kind", ATTACKS)
def test_no_text_of_others_moves_the_slms_own_features(kind):
    changed, own = 0, [FEATURES.index(name) for name in OWN]
    for context, candidates, *_ in steps_of(episodes(), 10, 100):
        before, after = (featurise(c, candidates, [0.5] * len(candidates)) for c in (context, ATTACKS[kind](context)))
        assert [before.values[i] for i in own] == [after.values[i] for i in own]
        changed += before != after
    assert changed


def test_routers_may_be_fitted_on_the_slms_own_features_alone():
    won, lost = (replace(run(routed(slm="press red"), seed=seed), success=seed == 1) for seed in (1, 2))
    other = replace(lost, task=replace(lost.task, id="another"))
    data = FitData(
        [won, other] * 4, [won, lost], FittedWith(3, 10, "household"), RouterSettings(epochs=1, features="own"), 1,
        differs=[[True, False, True]] * 8, differs_validation=[[False, True, True]] * 2, explored=[won],
        branches=[Branch(i, 0, 0, i % 4 == 0, False) for i in range(8)],
    )  # fmt: skip
    asked = replace(data, explored=[replace(run(routed(router=Always()), seed=3), success=True)], budgets=[0.5])
    for model in (data.risk, data.disagreement, fit_worth(data), Bandit.fit(data).gain, *Helper.fit(asked).values):
        assert model.names == OWN
    assert replace(data, settings=RouterSettings(epochs=1)).risk.names == EXTENDED


def test_a_router_that_looks_at_nothing_is_moved_by_nothing():
    class Fixed(RouterBase):
        def decide(self, context, features, memory, *, seed):
            return ThresholdRouter("fixed", lambda f: float(context.t % 2), 0.5).decide(context, features, memory, seed=seed)

    found = text_attacks(Fixed(), "full", Flat(), steps_of(episodes(), 10, 20))
    assert all(rates["bought"] == 0 and rates["suppressed"] == 0 for rates in found.values())
