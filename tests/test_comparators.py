"""The routers of other papers: the property that defines each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Routed
from r2v.core.features import EXTENDED, FEATURES, batch, featurise
from r2v.core.fixed import Always, Never, Redraw
from r2v.core.mlp import linear
from r2v.core.seeds import derive_uniform
from r2v.core.types import RESTART, Action, Context, Decision, Features, Memory
from r2v.evaluation.branches import Branch
from r2v.learning.linear import fit_logistic, fit_ridge
from r2v.routers.bandit import Bandit, fit_linucb
from r2v.routers.base import compare
from r2v.routers.benefit import Benefit
from r2v.routers.cascade import Cascade
from r2v.routers.cascade_routing import CascadeRouting
from r2v.routers.conformal import Band, Conformal, fit_band, running_means
from r2v.routers.helper import Helper, Mixture
from r2v.routers.interventions import Intervention
from r2v.routers.judge_latch import JudgeLatch
from r2v.routers.query import Query, fit_goal, words_of
from r2v.routers.r2v import R2V
from r2v.routers.random import Random
from r2v.routers.restart import Renewal, Restart, renewal_at
from test_help import Copyable
from toy import Flat, Scored, ThresholdRouter, Toy, played_episode, routed, run


def features(**values: float) -> Features:
    row = tuple(values.get(name, 0.0) for name in FEATURES)
    return Features(row, (True,) * len(row))


def context(t: int = 0, goal: str = "press red.", horizon: int = 20) -> Context:
    return Context(goal, ("",) * (t + 1), (Action("press red"),) * t, horizon)


def test_a_query_router_decides_once_on_the_goal_alone():
    router = Query(bias=-1.0, weights={"red": 3.0}, threshold=0.5)
    hard, easy = context(goal="press red."), context(goal="press blue.")
    assert router.decide(hard, features(), Memory(), seed=1).route == "takeover"
    assert router.decide(easy, features(first_token_entropy=9), Memory(), seed=1).route == "continue"
    assert router.decide(context(t=3), features(), Memory(), seed=1).route == "continue"  # never again
    red = run(routed(router=router))
    assert [step.choice.source for step in red.steps] == ["teacher"] * 3


def test_the_goal_model_learns_which_words_are_hard():
    bias, weights = fit_goal(["find a cup", "heat a cup"] * 40, [False, True] * 40)
    fitted = Query(bias=bias, weights=weights)
    assert fitted.risk("heat an egg") > 0.7 > 0.3 > fitted.risk("find an egg")


def test_logistic_regression_recovers_its_weights():
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(20_000, 3))
    w = np.array([1.0, -2.0, 0.0])
    y_N = (rng.random(len(x_NF)) < 1 / (1 + np.exp(-(x_NF @ w + 0.5)))).astype(float)
    weights, bias = fit_logistic(x_NF, y_N, 1e-3)
    assert np.allclose(weights, w, atol=0.1) and bias == pytest.approx(0.5, abs=0.1)


def test_ridge_predicts_and_shrinks_noise_to_its_mean():
    rng = np.random.default_rng(0)
    x_NF, owner_N = rng.normal(size=(3000, len(FEATURES))), np.arange(3000) // 10
    present = np.ones_like(x_NF, dtype=bool)
    rows = [Features(tuple(row), (True,) * len(row)) for row in x_NF[:200]]
    signal = fit_ridge(x_NF, present, 2 * x_NF[:, 0] + 1, owner_N, FEATURES, "x")
    assert np.allclose([signal.value(row) for row in rows], 2 * x_NF[:200, 0] + 1, atol=0.1)
    noise = fit_ridge(x_NF, present, rng.normal(size=3000) + 1, owner_N, FEATURES, "x")
    assert noise.facts["penalty"] == 10000.0
    assert np.std([noise.value(row) for row in rows]) < 0.1


def test_a_judge_needs_two_objections_in_a_row_and_then_latches():
    router = JudgeLatch(threshold=0.5)
    memory, routes = Memory(), []
    for best in (0.2, 0.9, 0.2, 0.2):  # an objection, none, two in a row
        decision = router.decide(context(), features(verifier_best=best), memory, seed=0)
        routes.append(decision.route)
        memory = replace(memory, decisions=(*memory.decisions, decision))
    assert routes == ["continue", "continue", "continue", "takeover"]
    episode = run(routed(router=JudgeLatch(threshold=0.4)), horizon=8)  # Flat scores everything .5: it objects each time
    assert [step.choice.source for step in episode.steps] == ["slm", "teacher", "teacher", "teacher"]


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_a_conformal_monitor_alarms_on_at_most_alpha_of_the_solved_episodes(alpha):
    rng = np.random.default_rng(1)

    def curves(n: int) -> list[np.ndarray]:
        return [
            np.clip(0.3 + rng.normal() * 0.05 + rng.normal(size=int(rng.integers(5, 30))).cumsum() * 0.02, 0, 1)
            for _ in range(n)
        ]

    alarms, trials = 0, 400
    for _ in range(20):
        band = fit_band(curves(200), curves(60), 40)
        limit = band.limit(alpha)
        for values in curves(trials // 20):
            excess = (values - band.mean_H[: len(values)]) / band.std_H[: len(values)]
            alarms += bool((excess > limit).any())
    assert alarms / trials <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / trials)
    assert alarms / trials >= alpha / 4  # and it is not merely silent


def test_too_few_episodes_for_an_alpha_give_no_alarms():
    band = fit_band([np.ones(5)] * 6, [np.ones(5)] * 9, 5)
    assert band.limit(0.05) == float("inf") and band.limit(0.1) < float("inf")


def test_the_monitor_latches_when_the_mean_risk_leaves_the_band():
    quiet = [np.full(10, 0.1) + 0.01 * i for i in range(20)]
    router = Conformal(risk=Scored(lambda f: f.values[0]), band=fit_band(quiet, quiet, 10), threshold=0.1)
    memory, routes = Memory(), []
    for risk in (0.1, 0.1, 0.9):
        decision = router.decide(context(), features(first_token_entropy=risk), memory, seed=0)
        memory = replace(memory, decisions=(*memory.decisions, decision))
        routes.append(decision.route)
    assert routes == ["continue", "continue", "takeover"]
    assert memory.decisions[-1].score == pytest.approx(1.1 / 3)


def test_running_means_are_those_of_the_recorded_scores():
    episode = played_episode()
    (means,) = running_means([episode], lambda f: f.values[FEATURES.index("step_index")])
    steps = [step.choice.features.values[FEATURES.index("step_index")] for step in episode.steps]
    assert np.allclose(means, np.cumsum(steps) / np.arange(1, 4))


def test_the_bandit_prefers_the_better_arm_and_what_was_tried_little():
    slm, teacher = played_episode(), run(routed(router=Always()))
    bad = replace(slm, success=False)
    gain, inverse = fit_linucb([bad] * 20 + [teacher] * 20)
    learned = Bandit(gain=gain, inverse_AFF=inverse, bonus=0.0)
    row = teacher.steps[0].choice.features
    assert learned.score(row) > 0.5
    n = len(FEATURES) + 1
    often, rarely = np.eye(n) / 100, np.eye(n)  # inverse of what each arm has seen
    bold = Bandit(gain=gain, inverse_AFF=np.stack([often, rarely]), bonus=1.0)
    shy = Bandit(gain=gain, inverse_AFF=np.stack([rarely, often]), bonus=1.0)
    assert bold.score(row) > learned.score(row) > shy.score(row)


def test_the_bandits_choice_is_nearly_as_good_as_the_best_arm():
    """Rewards linear in a feature: after 600 logged episodes the regret of a step is a tenth of chance's."""
    rng = np.random.default_rng(2)
    base, asked = played_episode().steps[0], run(routed(router=Always())).steps[0]
    episodes, template = [], played_episode()
    for _ in range(600):
        x, helped = rng.normal(), rng.random() < 0.5
        p = 0.6 if helped else 0.5 + 0.2 * np.clip(x, -2, 2)
        choice = replace((asked if helped else base).choice, features=features(first_token_entropy=x))
        episodes.append(replace(template, steps=(replace(base, choice=choice),), success=bool(rng.random() < p)))
    gain, inverse = fit_linucb(episodes)
    model = Bandit(gain=gain, inverse_AFF=inverse, bonus=0.0)
    x_N = rng.normal(size=2000)
    gain_N = 0.6 - (0.5 + 0.2 * np.clip(x_N, -2, 2))
    ask_N = np.array([model.score(features(first_token_entropy=x)) >= 0 for x in x_N])
    best, chance = np.maximum(gain_N, 0).mean(), gain_N.mean() / 2
    assert best - (gain_N * ask_N).mean() < 0.1 * (best - chance)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.6))
def test_cascade_routing_takes_the_largest_quality_minus_price(now, later, price):
    router = CascadeRouting(
        disagreement=Scored(lambda f: now), disagreement_later=Scored(lambda f: later), threshold=price, retry_price=0.1
    )
    worth = {"continue": 1 - now, "escalate": 1 - price, "retry": 1 - later - 0.1 * price}
    first = router.decide(context(), features(), Memory(), seed=0)
    assert worth[first.route] == max(worth.values())
    assert first.code == {"continue": "risk_below", "escalate": "risk_above", "retry": "retry"}[first.route]
    again = router.decide(context(), features(), Memory(retries=1), seed=0)  # plans anew, with no second redraw
    assert again.route != "retry" and worth[again.route] == max(worth["continue"], worth["escalate"])


def test_a_retry_widens_the_choice_and_costs_a_second_draw():
    episode = run(routed(slm="press red", router=Redraw()))
    assert episode.success
    assert all(len(step.choice.candidates) == 6 and step.choice.slm.calls == 2 for step in episode.steps)


@given(st.floats(0.05, 0.95), st.floats(0, 1), st.floats(0, 0.9), st.floats(1, 20), st.floats(1, 40))
def test_the_renewal_formula(p, tpr, fpr, alarm, failed):
    renewal = Renewal(p, 10.0, failed, tpr, fpr, min(alarm, failed), 4.0, 1.0)
    idle = replace(renewal, tpr=0.0, fpr=0.0)
    assert renewal.time_to_success(stopping=False) == pytest.approx(idle.time_to_success())
    assert not idle.pays
    assert replace(renewal, fpr=0.0, tpr=1.0, alarm_failed=0.5 * failed).pays


def test_the_renewal_formula_agrees_with_simulation_and_with_the_papers_example():
    example = Renewal(p=0.5, solved=60, failed=90, tpr=0.8, fpr=0.1, alarm_failed=30, alarm_solved=30, reset=0)
    assert example.time_to_success() == pytest.approx(110.0)
    assert example.time_to_success(stopping=False) == pytest.approx(150.0)
    rng = np.random.default_rng(0)
    times = []
    for _ in range(20_000):
        time = 0.0
        while True:
            good = rng.random() < example.p
            stopped = rng.random() < (example.fpr if good else example.tpr)
            time += 30 if stopped else (60 if good else 90)
            if good and not stopped:
                break
        times.append(time)
    assert np.mean(times) == pytest.approx(110.0, rel=0.02)


def test_what_stopping_would_have_done_is_read_from_recorded_scores():
    solved = played_episode()
    failed = replace(solved, success=False)
    renewal = renewal_at([solved, failed, failed], [np.array([0.1, 0.6]), np.array([0.1, 0.9]), np.zeros(4)], 0.5)
    assert (renewal.p, renewal.tpr, renewal.fpr) == (pytest.approx(1 / 3), 0.5, 1.0)
    assert (renewal.solved, renewal.failed, renewal.alarm_failed, renewal.alarm_solved) == (2.0, 3.0, 1.0, 1.0)


def restarting(risk, threshold: float, renewal: Renewal) -> Restart:
    return Restart(risk=Scored(risk), measured=((threshold, renewal),), threshold=threshold)


GOOD = Renewal(p=0.9, solved=3.0, failed=20.0, tpr=1.0, fpr=0.0, alarm_failed=2.0, alarm_solved=2.0)


def test_a_restart_begins_again_within_the_same_horizon():
    """The small model walks into a trap first; the attempt after the restart, with other draws, does not."""
    slm = ScriptedPolicy(lambda c: "press trap" if c.t == 0 and c.horizon == 12 else "press red")
    router = restarting(lambda f: float(f.values[FEATURES.index("step_index")] >= 1), 1.0, GOOD)
    episode = run(
        Routed(AgentModels(slm, ScriptedPolicy(lambda c: "press blue"), Flat(), 2), router),
        environment=Copyable(),
        horizon=12,
    )
    assert [step.choice.action.text for step in episode.steps][:3] == ["press trap", "(restart)", "press red"]
    assert episode.steps[1].choice.action == RESTART and episode.steps[1].choice.decision.route == "restart"
    assert [step.t for step in episode.steps] == list(range(len(episode.steps)))
    known = episode.contexts(12)
    assert (known[2].t, known[2].horizon, known[2].observations) == (0, 10, (episode.steps[2].observation.text,))
    assert sum(step.choice.action == RESTART for step in episode.steps) == 1  # then it asks instead
    assert episode.steps[3].choice.source == "teacher"


def test_a_restarted_episode_still_ends_at_the_horizon():
    always = ThresholdRouter("x", lambda f: 1.0, 2.0)
    router = replace(always, name="again")

    class Again:
        name = "again"

        def decide(self, context, features, memory, *, seed):
            return replace(router.decide(context, features, memory, seed=seed), route="restart")

    episode = run(routed(router=Again()), environment=Copyable(), horizon=5)
    assert (episode.success, episode.stop, len(episode.steps)) == (False, "horizon", 5)
    broken = run(routed(router=Again()), environment=Toy(), horizon=5)
    assert broken.failure.boundary == "router" and "clone" in broken.failure.message


@pytest.mark.parametrize(("renewal", "horizon", "t"), [(replace(GOOD, tpr=0.0), 20, 2), (GOOD, 6, 3), (GOOD, 20, 0)])
def test_no_restart_where_it_does_not_pay_does_not_fit_or_has_nothing_to_gain(renewal, horizon, t):
    router = restarting(lambda f: 1.0, 0.5, renewal)
    assert router.decide(context(t, horizon=horizon), features(), Memory(), seed=0).route == "escalate"


def test_a_mixture_draws_once_an_episode():
    value = linear(FEATURES[:1], np.zeros(1), np.ones(1), np.zeros(1), 1.0)  # help is always worth 1
    mixture = Mixture(budget=2.0, value=0, first=None, second=0.5, weight=0.3)
    router = Helper(budgets=(2.0,), prices=(0.5,), values=(value,), mixtures=(mixture,), threshold=2.0)
    routes = [{router.decide(context(t), features(), Memory(seed=z), seed=t).route for t in range(5)} for z in range(2000)]
    assert all(len(of_episode) == 1 for of_episode in routes)
    assert np.mean([of_episode == {"escalate"} for of_episode in routes]) == pytest.approx(0.3, abs=0.04)


def routes_of(how: str, alarms: set[int], horizon: int = 10) -> list[str]:
    """The routes of an episode in which the alarm rings at these steps of an attempt."""
    step = FEATURES.index("step_index")
    router = Intervention(risk=Scored(lambda f: float(f.values[step] in alarms)), threshold=1.0, how=how)
    slm = ScriptedPolicy(lambda c: "press blue")
    models = AgentModels(slm, ScriptedPolicy(lambda c: "press green"), Flat(), 2)
    return [s.choice.decision.route for s in run(Routed(models, router), environment=Copyable(), horizon=horizon).steps]


GO, ASK = "continue", "escalate"


@pytest.mark.parametrize(
    ("how", "routes"),
    [
        ("escalate", [GO, GO, ASK, GO, GO, GO, GO]),
        ("escalate_3", [GO, GO, ASK, ASK, ASK, GO, GO]),
        ("takeover", [GO, GO, *["takeover"] * 5]),
        ("retry", [GO] * 7),  # the draw that decided in the end is the one recorded
        ("restart", [GO, GO, "restart", GO, GO, ASK, GO]),
        ("rewind", [GO, GO, "restart", *["takeover"] * 4]),
    ],
)
def test_each_intervention_answers_the_alarm_in_its_own_way(how, routes):
    assert routes_of(how, {2}, horizon=7) == routes


@pytest.mark.parametrize(
    ("how", "before", "memory", "expected"),
    [
        ("rewind", "restart", {}, ("takeover", "latch", None, None, 0.5, 1.0)),
        ("escalate_3", "escalate", {}, ("escalate", "hold", None, None, 0.5, 1.0)),
        ("retry", "continue", {"retries": 1}, ("continue", "risk_below", 0.9, "risk", 0.5, 1.0)),
        ("retry", "continue", {}, ("retry", "retry", 0.9, "risk", 0.5, 1.0)),
        ("takeover", "continue", {}, ("takeover", "risk_above", 0.9, "risk", 0.5, 1.0)),
        ("rewind", "continue", {}, ("restart", "risk_above", 0.9, "risk", 0.5, 1.0)),
    ],
)
def test_an_intervention_says_what_it_does_and_why(how, before, memory, expected):
    router = Intervention(risk=Scored(lambda f: 0.9), threshold=0.5, how=how)
    earlier = compare("risk", "risk", 1.0, 0.5, above=before)
    decision = router.decide(context(1), features(), Memory(decisions=(earlier,), **memory), seed=0)
    assert decision == Decision(*expected, (), decision.reason)


def test_a_second_alarm_after_a_burst_begins_another():
    assert routes_of("escalate_3", {1, 4}, horizon=8) == [GO, ASK, ASK, ASK, ASK, ASK, ASK, GO]


def test_a_retry_is_paid_for():
    from r2v.evaluation.outcomes import row

    step = FEATURES.index("step_index")
    router = Intervention(risk=Scored(lambda f: float(f.values[step] == 1)), threshold=1.0, how="retry")
    episode = run(routed(router=router), horizon=3)
    assert [len(s.choice.candidates) for s in episode.steps] == [3, 6, 3]
    assert row(episode).slm_calls == 4


def test_agents_that_restart_play_together_as_they_would_alone():
    from r2v.evaluation.closed_loop import play, play_all
    from toy import TASK

    slm = ScriptedPolicy(lambda c: "press trap" if c.t == 0 and c.horizon == 12 else "press red")
    models = AgentModels(slm, ScriptedPolicy(lambda c: "press red"), Flat(), 2)
    step = FEATURES.index("step_index")
    agents = [Routed(models, restarting(lambda f, at=at: float(f.values[step] >= at), 1.0, GOOD)) for at in (1, 2)]
    agents += [Routed(models, Never()), Routed(models, Always())]

    def make(task, z):
        return Copyable(), "none"

    together = asyncio.run(play_all(agents, [(TASK, 1)], make, horizon=12))
    assert together == [asyncio.run(play(agent, [(TASK, 1)], make, horizon=12)) for agent in agents]


# -- what a fit takes from its data ---------------------------------------------------------------------------------

T = FEATURES.index("step_index")
STEP = Scored(lambda f: f.values[T])  # the step stands for a risk
LOST, WON = run(routed(), horizon=5), run(routed(slm="press red"), horizon=5)  # five steps and three


def data(**more) -> SimpleNamespace:
    """What fits need of `r2v.routers.fit_data.FitData`."""
    parts = {
        "risk": STEP, "disagreement": STEP, "rollouts": [LOST, WON], "held": [LOST, LOST], "horizon": 5, "fitted_with": None,
        "names": FEATURES,
    }  # fmt: skip
    return SimpleNamespace(**{**parts, **more})


def test_a_helper_with_a_limit_decides_by_the_calls_that_are_left():
    last, before = (linear(FEATURES[:1], np.zeros(1), np.ones(1), np.zeros(1), value) for value in (0.1, 0.4))
    mixture = Mixture(budget=2.0, value=1, first=0.3, second=0.3, weight=1.0)
    router = Helper(
        budgets=(1.0, 2.0),
        prices=(0.5, 0.5),
        values=(STEP, STEP, last, before),
        mixtures=(mixture,),
        threshold=2.0,
        max_calls=2,
    )
    left = {calls: router.decide(context(), features(), Memory(calls), seed=0).route for calls in (0, 1, 2, 9, None)}
    assert left == {0: "continue", 1: "continue", 2: "escalate", 9: "escalate", None: "escalate"}
    with pytest.raises(ValueError, match="beyond"):
        replace(router, mixtures=(replace(mixture, value=2),))


def test_a_helper_mixes_the_two_prices_on_either_side_of_its_budget():
    usage, tried = {4.0: 0.5, 3.0: 2.0, 2.0: 3.0, 1.0: 4.0, 0.0: 5.0}, []

    def play(prices):
        tried.extend(price.threshold for price in prices.values())
        return {name: [usage[price.threshold] - 0.5, usage[price.threshold] + 0.5] for name, price in prices.items()}

    budgets = (0.25, 1.0, 3.0, 9.0)
    made = Helper(budgets=budgets, prices=(0.0,) * 4, values=(STEP,) * 4).tuned(play, data())
    assert tried == [4, *(4, 3, 2), *(3, 2, 0), *(1, 0)]
    assert made.mixtures == (
        Mixture(0.25, 0, None, 4.0, 0.5), Mixture(1.0, 1, 4.0, 3.0, pytest.approx(1 / 3)),
        Mixture(3.0, 2, 2.0, 0.0, 0.0), Mixture(9.0, 3, 0.0, 0.0, 0.0),
    )  # fmt: skip
    assert made.thresholds([], []) == list(budgets)
    row = features(step_index=3.5)  # reaches 3, not 4
    for seed in range(20):
        second = derive_uniform(seed, "mixture") < 1 / 3
        decision = made.at(1.0).decide(context(), row, Memory(seed=seed), seed=0)
        assert (decision.route == "escalate") == second and decision.threshold == (3.0 if second else 4.0)
    with pytest.raises(ValueError, match="not 2"):
        made.at(2.0).decide(context(), row, Memory(), seed=0)


def test_a_restart_measures_thresholds_from_the_lowest_score_to_the_highest():
    router = Restart.fit(data())
    assert [router.measured[i][0] for i in (0, 100)] == [0.0, 4.0] and len(router.measured) == 101
    scores = [np.arange(5.0), np.arange(3.0)]
    assert router.at(3.99).renewal == renewal_at([LOST, WON], scores, 4.0)
    assert router.at(4.0).renewal == Renewal(0.5, 3.0, 5.0, 1.0, 0.0, 4.0, 0.0)
    assert renewal_at([LOST, WON], scores, 9.0) == Renewal(0.5, 3.0, 5.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert replace(GOOD, p=0.0).time_to_success() == replace(GOOD, fpr=1.0).time_to_success() == float("inf")
    assert Renewal(0.5, 4.0, 8.0, 0.5, 0.25, 2.0, 3.0).time_to_success() == pytest.approx((1.875 + 2.5 + 1) / 0.375)
    assert not Renewal(0.5, 4.0, 8.0, 0.0, 0.0, 0.0, 0.0).pays
    just = restarting(lambda f: 1.0, 0.5, GOOD)  # a restart takes one step, a solved episode three
    routes = [just.decide(context(t, horizon=6), features(), Memory(), seed=0).route for t in (1, 2, 3)]
    assert routes == ["restart", "restart", "escalate"]


def test_a_conformal_band_by_hand():
    shape = [np.array([0.1, 0.2, 0.3]) + i / 10 for i in range(5)] + [np.array([0.1, 0.2, 0.3, 0.9]) + 0.2]
    band = fit_band(shape, [np.array([0.3, 0.5]), np.array([]), np.array([0.2])], 5)
    assert band.mean_H == pytest.approx([0.3, 0.4, 0.5, 0.5, 0.5])
    std = np.std([0.1, 0.2, 0.3, 0.4, 0.5, 0.3])
    assert band.std_H == pytest.approx([std] * 5) and band.excess_N == pytest.approx([-0.1 / std, 0.1 / std])
    enough = fit_band([np.arange(2.0)] * 5, [], 2)
    assert (enough.mean_H.tolist(), enough.std_H.tolist()) == ([0.0, 1.0], [1e-3, 1e-3])
    assert fit_band([np.arange(2.0)] * 4, [], 2).mean_H.tolist() == [0.0, 0.0]  # too few: the first step's
    rising = Conformal(risk=STEP, band=Band(np.array([0.1, 0.7]), np.zeros(2), np.arange(9.0)), threshold=0.5)
    past = Memory(decisions=(rising.decide(context(), features(), Memory(), seed=0),) * 5)
    edges = [rising.decide(context(), features(), memory, seed=0).threshold for memory in (Memory(), past)]
    assert edges == [0.1, 0.7]  # the last step's edge holds from there on
    nine = Band(np.array([0.5]), np.array([0.25]), np.arange(9.0))
    assert [nine.limit(alpha) for alpha in (0.05, 0.1, 0.5, 1.0)] == [float("inf"), 8.0, 4.0, 0.0]
    router = Conformal(risk=STEP, band=nine, threshold=1.0)
    at_edge, above = (router.decide(context(), features(step_index=x), Memory(), seed=0) for x in (0.5, 0.51))
    assert (at_edge.route, at_edge.code, at_edge.state) == ("continue", "risk_below", (0.5,))
    assert at_edge.propensity == above.propensity == 1.0
    assert (above.route, above.code, above.threshold, above.score_kind) == ("takeover", "risk_above", 0.5, "mean_risk")
    later = router.decide(context(), features(step_index=0.2), Memory(decisions=(at_edge, above)), seed=0)
    assert later.score == pytest.approx((0.51 * 2 + 0.2) / 3)
    assert router.thresholds([], [0.3, 0.1]) == [0.1, 0.3]
    mixed = data(rollouts=[WON] * 6 + [LOST], held=[WON, LOST])
    fitted, means = Conformal.fit(mixed).band, np.array([0.0, 0.5, 1.0])
    expected = fit_band([means] * 6, [means], 5)
    assert all(np.array_equal(getattr(fitted, name), getattr(expected, name)) for name in ("mean_H", "std_H", "excess_N"))


def test_cascade_routing_foresees_a_second_draw_from_the_first():
    episodes = [run(routed(router=Redraw()), seed=z, horizon=2) for z in range(6)]
    differs = [[True, False]] * 3 + [[False, False]] * 3
    parts = data(k=3, horizon=2, redrawn=episodes, differs_redrawn=differs, probability=lambda *args, **_: args)
    router = CascadeRouting.fit(parts)
    name, train, held, names = router.disagreement_later
    assert (name, names, router.disagreement) == ("cascade_routing", EXTENDED, STEP)
    assert (held.episode_N.tolist(), train.episode_N.tolist()) == ([0, 0, 5, 5], [1, 1, 2, 2, 3, 3, 4, 4])
    assert (held.y_N.tolist(), train.y_N.tolist()) == ([1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0])
    assert held.group_N.tolist() == [0, 0, 5, 5]
    choice, known = episodes[0].steps[1].choice, episodes[0].contexts(2)[1]
    row = featurise(known, choice.candidates[:3], choice.scores[:3])
    assert np.array_equal(held.x_NF[1], batch([row])[0][0])
    decision = CascadeRouting(disagreement=Scored(lambda f: 0.3), disagreement_later=Scored(lambda f: 0.9), threshold=0.2)
    found = decision.decide(context(), features(), Memory(), seed=0)
    assert (found.route, found.code, found.score) == ("escalate", "risk_above", pytest.approx(0.3))
    assert (found.propensity, found.threshold, found.score_kind) == (1.0, 0.2, "disagreement")


def test_the_worth_of_a_step_is_learned_from_its_two_futures():
    """Helped at step 4 alone; every draw is a row."""
    recorded = [replace(LOST, task=replace(LOST.task, id=str(i))) for i in range(5)]
    branches = [Branch(i, t, draw, helped=t == 4, alone=t == 0) for i in range(5) for t in range(5) for draw in range(9)]
    router = Benefit.fit(data(recorded=recorded, branches=branches))
    early, middle, late = (router.worth.value(LOST.steps[t].choice.features) for t in (0, 2, 4))
    assert late > 0.5 and abs(middle) < 0.3 and early < -0.5 and router.worth.facts["rows"] == 225
    product = Benefit(disagreement=Scored(lambda f: 0.5), worth=Scored(lambda f: 0.5))
    assert product.score(features()) == 0.25
    assert Cascade.fit(data()).score(features(step_index=0.7)) == R2V.fit(data()).score(features(step_index=0.7)) == 0.7


def test_goals_are_judged_by_words_that_are_not_rare():
    query = Query(bias=-1.0, weights={"red": 3.0, "key": -0.5}, threshold=0.5)
    assert query.risk("Red KEY red!") == pytest.approx(1 / (1 + np.exp(-1.5)))
    assert words_of("Red KEY-red 2") == {"red", "key"}
    _, weights = fit_goal(["find a cup"] * 4 + ["heat an egg"] * 5, [False] * 4 + [True] * 5)
    assert set(weights) == {"heat", "an", "egg"}
    fitted = Query.fit(data(rollouts=[LOST] * 5 + [WON] * 5))
    assert fitted.risk("press red.") == pytest.approx(0.5, abs=0.01)  # the share of failures
    assert query.thresholds([LOST, LOST], [0.5, 1.0]) == [query.risk(LOST.goal)]


def test_a_score_at_the_threshold_escalates():
    at, below = compare("x", "risk", 0.5, 0.5, state=(1.0,), why="!"), compare("x", "risk", 0.49, 0.5, above="retry")
    assert (at.route, at.code, at.state, at.propensity, at.reason) == (
        "escalate",
        "risk_above",
        (1.0,),
        1.0,
        "x 0.500 >= 0.500!",
    )
    assert (below.route, below.code, below.state) == ("continue", "risk_below", ())
    assert compare("x", "risk", 0.5, 0.5, above="retry").code == "retry"
    router = Random(threshold=0.3)
    assert router.thresholds([], [0.5, 0.2]) == [0.2, 0.5]
    for seed in range(30):
        asked = derive_uniform(seed, "random router") < 0.3
        decision = router.decide(context(), features(), Memory(), seed=seed)
        assert (decision.route, decision.propensity) == (("escalate", 0.3) if asked else ("continue", 0.7))
        assert (decision.code, decision.score_kind, decision.threshold) == ("random", None, 0.3)


def test_an_objection_is_remembered_until_the_next_step():
    judge = JudgeLatch(threshold=0.5)
    first = judge.decide(context(), features(verifier_best=0.5), Memory(), seed=0)
    assert (first.route, first.code, first.state, first.score) == ("continue", "risk_below", (1.0,), 0.5)
    second = judge.decide(context(), features(verifier_best=0.5), Memory(decisions=(first,)), seed=0)
    assert (second.route, second.code, second.score_kind) == ("takeover", "risk_above", "verifier_doubt")
    fine = judge.decide(context(), features(verifier_best=0.51), Memory(decisions=(first,)), seed=0)
    assert (fine.route, fine.state) == ("continue", (0.0,))
