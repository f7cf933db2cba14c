"""What help is worth: decision processes with a price, off-policy estimates, branches, the clairvoyant bound."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Routed
from r2v.core.fixed import AtSteps, Never
from r2v.core.seeds import derive_seed
from r2v.core.types import Action, Candidate, Observation, Usage
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.verifier import HouseholdVerifier
from r2v.evaluation.branches import branch, differs
from r2v.evaluation.closed_loop import cases, play
from r2v.evaluation.oracle_bound import Fewest, bound, fewest_calls
from r2v.evaluation.state_oracle import Repeating, StateOracle
from r2v.learning.helper import model
from r2v.maths.mdp import Mdp, Plan, limited, meet_budget, plan
from r2v.maths.offpolicy import doubly_robust_N, ips_N
from test_loop import Clumsy, household
from toy import TASK, Flat, Toy, routed, run


def random_mdp(seed: int, H: int = 4, S: int = 4, A: int = 2) -> Mdp:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(S + 2, 0.6), size=(H, A, S))
    return Mdp(p[..., :S], p[..., S], rng.dirichlet(np.ones(S)), np.arange(A, dtype=float))


def optimum(mdp: Mdp, calls: float) -> float:
    """Best success under an expected budget: the linear program over occupancies x[t, a, s]."""
    from scipy.optimize import linprog

    H, A, S, _ = mdp.p_HASS.shape
    n = H * A * S
    index = np.arange(n).reshape(H, A, S)
    flow, right = np.zeros((H * S, n)), np.zeros(H * S)
    right[:S] = mdp.start_S
    for t in range(H):
        for s in range(S):
            flow[t * S + s, index[t, :, s]] = 1
            if t:
                flow[t * S + s, index[t - 1].ravel()] -= mdp.p_HASS[t - 1, :, :, s].ravel()
    usage = np.broadcast_to(mdp.calls_A[None, :, None], (H, A, S)).ravel()
    solved = linprog(-mdp.win_HAS.ravel(), A_ub=usage[None], b_ub=[calls], A_eq=flow, b_eq=right, bounds=(0, None))
    return float(-solved.fun)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 3.0), st.integers(2, 3))
def test_the_mixture_is_the_optimum_of_the_linear_program(seed, calls, actions):
    mdp = random_mdp(seed, A=actions)
    mix = meet_budget(mdp, calls)
    assert mix.success == pytest.approx(optimum(mdp, calls), abs=1e-6)
    assert mix.calls <= calls + 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_usage_falls_as_the_price_rises(seed):
    mdp = random_mdp(seed)
    plans = [plan(mdp, price) for price in np.linspace(0, 1, 60)]
    assert all(a.calls >= b.calls - 1e-9 and a.success >= b.success - 1e-9 for a, b in pairwise(plans))
    assert plans[-1].calls == 0


def success_within(mdp: Mdp, calls: int) -> float:
    """The best success under a limit of calls that no episode may exceed; actions cost whole calls."""
    H, A, S, _ = mdp.p_HASS.shape
    cost_A = mdp.calls_A.astype(int)
    value_BS = np.zeros((calls + 1, S))
    for t in reversed(range(H)):
        q_ABS = np.full((A, calls + 1, S), -np.inf)
        for a in range(A):
            for b in range(cost_A[a], calls + 1):
                q_ABS[a, b] = mdp.win_HAS[t, a] + mdp.p_HASS[t, a] @ value_BS[b - cost_A[a]]
        value_BS = q_ABS.max(axis=0)
    return float(mdp.start_S @ value_BS[calls])


@pytest.mark.parametrize("seed", range(5))
def test_a_hard_limit_costs_success_and_is_exact_when_loose(seed):
    mdp = random_mdp(seed)
    limits = [success_within(mdp, calls) for calls in range(6)]
    assert limits == sorted(limits)
    assert limits[0] == pytest.approx(plan(mdp, 1.1).success)
    assert limits[-1] == pytest.approx(plan(mdp, 0.0).success)
    assert all(limits[c] <= optimum(mdp, c) + 1e-9 for c in range(6))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(2, 3))
def test_a_plan_with_the_calls_left_in_its_state_is_the_best_under_a_hard_limit(seed, calls, actions):
    mdp = random_mdp(seed, A=actions)
    process = limited(mdp, calls)
    best = plan(process, 0.0)
    assert best.success == pytest.approx(success_within(mdp, calls))
    assert best.calls <= calls + 1e-9  # on average; the next line: in every episode
    _, _, S, _ = mdp.p_HASS.shape
    cost = mdp.calls_A.astype(int)
    assert all(cost[best.action_HS[:, b * S : (b + 1) * S]].max() <= b for b in range(calls + 1))
    mix = meet_budget(process, 0.5)
    assert mix.calls <= 0.5 + 1e-6 and mix.success <= best.success + 1e-9


EASY, FORK, ROAD, HOPELESS, LATE, SIDE, NEAR = range(7)


def toy(H: int = 12) -> Mdp:
    """Seven states; help is decisive at the fork and useful on the side road, useless where all is lost or easy."""
    p, win = np.zeros((2, 7, 7)), np.zeros((2, 7))
    for a in (0, 1):
        p[a, EASY, ROAD], p[a, EASY, FORK] = 0.6, 0.4
        p[a, ROAD, NEAR], p[a, ROAD, SIDE], p[a, ROAD, ROAD] = 0.5, 0.2, 0.3
        p[a, HOPELESS, HOPELESS], p[a, HOPELESS, LATE] = 0.9, 0.1
        p[a, LATE, HOPELESS] = 1.0
        win[a, NEAR] = 0.9
    p[0, FORK, ROAD], p[0, FORK, HOPELESS] = 0.35, 0.65
    p[1, FORK, ROAD], p[1, FORK, HOPELESS] = 0.95, 0.05
    p[0, SIDE, ROAD], p[0, SIDE, HOPELESS] = 0.6, 0.4
    p[1, SIDE, ROAD] = 1.0
    start = np.eye(7)[EASY]
    return Mdp(np.broadcast_to(p, (H, 2, 7, 7)).copy(), np.broadcast_to(win, (H, 2, 7)).copy(), start, np.array([0.0, 1.0]))


def follow(mdp: Mdp, action_HS: np.ndarray) -> tuple[float, float]:
    """(calls, success) of a policy by forward recursion."""
    state, calls, success, rows = mdp.start_S.copy(), 0.0, 0.0, np.arange(mdp.start_S.size)
    for t, action_S in enumerate(action_HS):
        calls += float(state @ mdp.calls_A[action_S])
        success += float(state @ mdp.win_HAS[t, action_S, rows])
        state = state @ mdp.p_HASS[t, action_S, rows]
    return calls, success


def risk_threshold(mdp: Mdp, calls: float) -> float:
    """Success of the best mixture of thresholds on P(failure without help), at most so many calls."""
    alone = plan(mdp, 2.0)
    v = np.zeros((len(mdp.win_HAS) + 1, mdp.start_S.size))
    for t in reversed(range(len(mdp.win_HAS))):
        v[t] = mdp.win_HAS[t, 0] + mdp.p_HASS[t, 0] @ v[t + 1]
    risk = 1 - v[:-1]
    points = [(0.0, alone.success)]
    points += [follow(mdp, (risk >= threshold).astype(int)) for threshold in np.unique(risk.round(12))]
    x, y = zip(*sorted(points), strict=True)
    return float(np.interp(calls, x, y))


@pytest.mark.parametrize("calls", [0.2, 0.4, 0.6])
def test_the_helper_beats_the_risk_threshold_at_equal_usage(calls):
    mdp = toy()
    mix = meet_budget(mdp, calls)
    assert mix.calls == pytest.approx(min(calls, plan(mdp, 0.0).calls))
    assert mix.success > risk_threshold(mdp, calls) + 0.02


def rollouts(mdp: Mdp, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Logs of random help over rates 0..1: (t, helped, key, next key or 21 won, 22 lost)."""
    rng = np.random.default_rng(seed)
    rows = []
    from r2v.learning.helper import LOST, WON

    for n in range(count):
        s = int(rng.choice(7, p=mdp.start_S))
        for t in range(len(mdp.win_HAS)):
            a = int(rng.random() < (n % 11) / 10)
            chance = np.append(mdp.p_HASS[t, a, s], [mdp.win_HAS[t, a, s], 0])
            chance[-1] = 1 - chance.sum()
            after = int(rng.choice(9, p=np.clip(chance, 0, 1)))
            last = t + 1 == len(mdp.win_HAS)
            rows.append((t, a, s, WON if after == 7 else LOST if after == 8 or last else after))
            if after >= 7:
                break
            s = after
    return tuple(np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("calls", [0.3, 0.6])
def test_a_helper_learned_from_rollouts_keeps_its_budget_and_beats_risk(seed, calls):
    mdp = toy()
    t_N, helped_N, key_N, next_N = rollouts(mdp, 1000, seed)
    learned = model(t_N, helped_N, key_N, next_N, np.array([EASY]), np.full(len(t_N), 0.5), len(mdp.win_HAS))
    mix = meet_budget(learned, calls)

    def really(p: Plan) -> np.ndarray:
        return np.array(follow(mdp, p.action_HS[:, :7]))

    usage, success = (1 - mix.weight) * really(mix.cheap) + mix.weight * really(mix.dear)
    assert usage == pytest.approx(min(calls, plan(mdp, 0).calls), rel=0.15)
    assert success >= risk_threshold(mdp, usage) - 1e-9


def logged(rng: np.random.Generator, n: int = 200_000) -> tuple[np.ndarray, ...]:
    """A step with known outcomes: help wins with .7, none with .4; afterwards random help spoils some rows."""
    e_N = rng.uniform(0.1, 0.9, n)
    a_N = (rng.random(n) < e_N).astype(float)
    alone = rng.random(n) < 0.5  # no help in the rest of the episode
    rest_N = np.where(alone, 0.5, 0.0)
    success_N = (rng.random(n) < np.where(alone, np.where(a_N > 0, 0.7, 0.4), 0.99)).astype(float)
    return a_N, e_N, success_N, rest_N


def test_off_policy_estimates_find_the_benefit_and_doubly_robust_has_less_variance():
    columns = logged(np.random.default_rng(5))
    n = len(columns[0])
    ips = ips_N(*columns)
    wrong, right = (doubly_robust_N(*columns, np.full(n, h), np.full(n, a)) for h, a in ((0.1, 0.9), (0.7, 0.4)))
    for estimate in (ips, wrong, right):
        assert estimate.mean() == pytest.approx(0.3, abs=4 * estimate.std() / np.sqrt(n))
    assert right.std() < 0.9 * ips.std()
    with pytest.raises(ValueError, match="cannot be estimated"):
        ips_N(np.ones(1), np.ones(1), np.ones(1), np.ones(1))


class Copyable(Toy):
    """Toy that can be copied, and in which `press trap` makes success impossible."""

    trapped = False

    async def step(self, action) -> Observation:
        self.trapped = self.trapped or action.text == "press trap"
        seen = await super().step(action)
        return replace(seen, success=False) if seen.done and self.trapped else seen

    def clone(self):
        copy = type(self)(self.goal)
        copy.__dict__.update(self.__dict__)
        return copy


def test_a_branch_plays_both_futures_of_a_step():
    slm = ScriptedPolicy(lambda c: "press trap" if c.t == 1 else "press red")
    models = AgentModels(slm, ScriptedPolicy(lambda c: "press red"), Flat(), 2)
    alone = run(Routed(models, Never()), environment=Copyable())
    assert alone.success is False
    found = asyncio.run(branch(models, lambda task, z: (Copyable(), "none"), 7, alone, [0, 1, 2], draws=2, horizon=10))
    assert {(b.t, b.helped, b.alone) for b in found} == {(0, False, False), (1, True, False), (2, False, False)}
    assert all(b.episode == 7 for b in found) and {b.draw for b in found} == {0, 1}
    assert asyncio.run(differs(alone, models.teacher, 10)) == [t == 1 for t in range(len(alone.steps))]


class Gambler:
    """Presses red; from step 2 on, where nobody helped at step 1, it falls into the trap in some draws."""

    name = "gambler"

    def __init__(self, falls):
        self.falls = falls

    async def propose(self, context, k, *, seed):
        done = [action.text for action in context.actions]
        fell = context.t == 2 and done[1] == "press blue" and self.falls(seed)
        text = "press blue" if context.t == 1 else "press trap" if fell else "press red"
        return tuple(Candidate(Action(text), None, None, Usage(1)) for _ in range(k))


def played_by_state_oracle(falls, *, futures=40, price=0.3, max_calls=None):
    models = AgentModels(Gambler(falls), ScriptedPolicy(lambda c: "press red"), Flat(), 2)
    oracle = StateOracle(
        models, lambda task, z, redrawn: (Copyable(), "none"), TASK, 3, futures, horizon=10, max_calls=max_calls
    )
    return oracle, asyncio.run(oracle.at(price))


def test_the_state_oracle_asks_where_its_futures_are_worth_the_price_and_not_for_its_own_luck():
    def asked(episode):
        return [step.t for step in episode.steps if step.choice.teacher.calls]

    own = derive_seed(derive_seed(TASK.id, 3, 2), "slm")
    _, episode = played_by_state_oracle(lambda seed: seed != own)  # only its own future is lucky
    assert asked(episode) == [1]  # a clairvoyant would not have asked
    _, unlucky = played_by_state_oracle(lambda seed: seed == own)  # only its own future is bad
    assert asked(unlucky) == [2]  # not before the SLM proposes the trap
    half, episode = played_by_state_oracle(lambda seed: seed % 2 == 0)
    assert asked(episode) == [1]
    (worth,) = [gained for (_, t), gained in half._gains.items() if t == 1]
    assert worth == pytest.approx(0.5, abs=0.25)
    assert asked(asyncio.run(half.at(1.0))) == []  # too dear
    assert asked(played_by_state_oracle(lambda seed: True, max_calls=1)[1]) == [1]


def test_the_futures_of_the_state_oracle_have_noise_of_their_own(small_tasks, small_scenes):
    made = []

    def make(task, z, redrawn):
        environment, family = household(small_scenes)(task, z)
        if redrawn is not None:
            environment.redraw(*redrawn)
        made.append(redrawn)
        return environment, family

    models = AgentModels(Clumsy(), HouseholdExpert(), HouseholdVerifier(), 3)
    oracle = StateOracle(models, make, small_tasks[0], 5, 2, horizon=12)
    asyncio.run(oracle.at(2.0))  # nothing is worth that much: every step is valued
    assert {draw for redrawn in made if redrawn for draw in (redrawn[1],)} == {1, 2}
    alone = asyncio.run(oracle.at(2.0))

    def seen(redrawn):
        acts = tuple(step.choice.action for step in alone.steps)
        agent = Repeating(acts, Routed(models, Never()))
        (episode,) = asyncio.run(play(agent, [(small_tasks[0], 5)], lambda t, z: make(t, z, redrawn), horizon=12))
        return [step.observation.text for step in episode.steps]

    first, again, other = seen(None), seen((4, 1)), seen((4, 2))
    assert first == [step.observation.text for step in alone.steps]
    assert first[:5] == again[:5] == other[:5] and len({tuple(x[5:]) for x in (first, again, other)}) == 3


def test_draw_0_of_a_branch_is_the_recorded_future_and_other_draws_differ(small_tasks, small_scenes):
    make = household(small_scenes)
    models = AgentModels(Clumsy(), HouseholdExpert(), HouseholdVerifier(), 3)
    episodes = asyncio.run(play(Routed(models, Never()), cases(small_tasks[:10], [5, 6]), make, horizon=20))
    found = [
        b
        for i, episode in enumerate(episodes)
        for b in asyncio.run(branch(models, make, i, episode, [0, 2], draws=4, horizon=20))
    ]
    assert all(b.alone == bool(episodes[b.episode].success) for b in found if b.draw == 0)
    assert {b.draw for b in found if b.alone != bool(episodes[b.episode].success)} == {1, 2, 3}


@pytest.mark.parametrize(("traps", "calls"), [((), 0), ((1,), 1), ((0, 1), 2), ((0, 1, 2), 3)])
def test_the_clairvoyant_finds_the_fewest_calls(traps, calls):
    slm = ScriptedPolicy(lambda c: "press trap" if c.t in traps else "press red")
    models = AgentModels(slm, ScriptedPolicy(lambda c: "press red"), Flat(), 2)
    alone = run(Routed(models, Never()), environment=Copyable(), horizon=6)
    found = asyncio.run(fewest_calls(models, lambda task, z: (Copyable(), "none"), alone, horizon=6))
    assert found == Fewest(TASK.id, alone.seed, calls)


def test_the_clairvoyant_admits_that_nothing_helps_and_refuses_holes():
    hopeless = routed(slm="press trap", teacher="press blue").models
    alone = run(Routed(hopeless, Never()), environment=Copyable(), horizon=5)
    assert asyncio.run(fewest_calls(hopeless, lambda t, z: (Copyable(), "none"), alone, horizon=5)).calls is None

    class Down:
        name = "down"

        async def propose(self, context, k, *, seed):
            raise OSError("down")

    with pytest.raises(RuntimeError, match="broke"):
        asyncio.run(fewest_calls(replace(hopeless, teacher=Down()), lambda t, z: (Copyable(), "none"), alone, horizon=5))


class Watched(Toy):
    """Notes what was done; two `press green` in a row, the second at step 10 or later, solve it."""

    def __init__(self, notes: list[list[str]], solvable: bool):
        super().__init__()
        self.actions: list[str] = []
        self.solvable = solvable
        notes.append(self.actions)

    async def step(self, action):
        self.actions.append(action.text)
        seen = await super().step(action)
        solved = self.solvable and len(self.actions) > 10 and self.actions[-2:] == ["press green"] * 2
        return replace(seen, done=True, success=True) if solved else seen


def test_the_search_tries_what_it_says_it_tries():
    """Each call, 24 pairs, runs from every fourth step on, and the last resort; of what helps it takes the fewest calls."""
    models = routed(slm="press blue", teacher="press green").models
    alone = run(Routed(models, Never()), horizon=24)
    notes: list[list[str]] = []
    found = asyncio.run(fewest_calls(models, lambda task, z: (Watched(notes, False), "none"), alone, horizon=24))
    assert found.calls is None
    drawn = Random(derive_seed("clairvoyant", TASK.id, 1)).sample(list(combinations(range(24), 2)), 24)
    runs = [list(range(t, min(24, t + length))) for length in (3, 8, 20) for t in (0, 4, 8, 12, 16, 20)]
    last = [list(range(t, 24)) for t in (0, 4, 8)]
    tried = [[t for t, text in enumerate(actions) if text == "press green"] for actions in notes]
    assert tried == [*([t] for t in range(24)), *map(list, drawn), *runs, *last]
    assert not any(t >= 10 and t == before + 1 for before, t in drawn)
    helped = asyncio.run(fewest_calls(models, lambda task, z: (Watched(notes, True), "none"), alone, horizon=24))
    assert helped.calls == 2  # from step 12 on; from step 8 on it takes three


def test_whether_the_teacher_differs_is_asked_with_the_seed_of_play():
    seeds = []

    class Told(ScriptedPolicy):
        async def propose(self, context, k, *, seed):
            seeds.append((context.t, k, seed))
            return await super().propose(context, k, seed=seed)

    alone = run(routed(), horizon=3)
    assert asyncio.run(differs(alone, Told(lambda c: "press blue"), 3)) == [False] * 3
    assert seeds == [(t, 1, derive_seed(derive_seed(TASK.id, 1, t), "teacher")) for t in range(3)]


def test_the_bound_spends_calls_on_the_cheapest_episodes_first():
    """Each of ten searched episodes stands for .04 of all."""
    fewest = [Fewest("a", 1, calls) for calls in (3, 1, None, 2, 3, None, 2, 3, None, 3)]
    found = bound(0.6, fewest, target=0.7)
    assert found.success_rate == pytest.approx(0.88)
    assert found.calls_per_episode == pytest.approx(0.68)
    assert found.calls_at_target == pytest.approx(0.2)  # the episodes of one and of two calls
    assert found.saved_by == pytest.approx({"0": 0.6, "1": 0.04, "2": 0.08, "3+": 0.16, "none": 0.12})
    assert found.searched == 10
    assert bound(0.6, fewest, target=0.72).calls_at_target == pytest.approx(0.2)  # just reached
    assert bound(0.6, fewest, target=0.95).calls_at_target is None
    assert bound(0.5, fewest[:1], target=1.0).success_rate == 1.0
    assert bound(0.6, fewest, target=0.6).calls_at_target == bound(1.0, [], target=1.0).calls_at_target == 0.0


def test_asking_at_given_steps_asks_there_alone():
    episode = run(routed(slm="press blue", router=AtSteps(frozenset([1, 3]))), horizon=6)
    assert [step.t for step in episode.steps if step.choice.source == "teacher"] == [1, 3]
