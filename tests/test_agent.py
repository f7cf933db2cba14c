"""The one loop: agents play whole episodes, what breaks is recorded, budgets hold, randomness is paired."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Forked, Noisy, Routed, Solo, within_budget
from r2v.core.features import best
from r2v.core.fixed import Always, AtSteps, Never, Redraw
from r2v.core.seeds import derive_seed, derive_uniform
from r2v.core.types import NO_USAGE, Action, Candidate, Context, Decision, Features, Memory, Usage
from r2v.routers.random import Random
from toy import Flat, ThresholdRouter, Toy, routed, run


def test_solo_and_routed_play_to_the_end():
    alone = run(Solo(ScriptedPolicy(["press red"] * 3), "teacher"))
    assert (alone.success, alone.stop, len(alone.steps), alone.llm_call_rate) == (True, "done", 3, 1.0)
    slm = run(routed(slm="press red"))
    assert (slm.success, slm.llm_call_rate) == (True, 0.0)
    helped = run(routed(router=Always()))
    assert helped.success
    assert all(step.choice.source == "teacher" and step.choice.decision.route == "escalate" for step in helped.steps)


def test_the_horizon_is_a_failure():
    episode = run(routed(), horizon=4)
    assert (episode.success, episode.stop, len(episode.steps)) == (False, "horizon", 4)


class Broken:
    name = "broken"

    async def propose(self, context, k, *, seed):
        raise KeyError("no answer")

    async def score(self, context, actions):
        raise ZeroDivisionError


class BrokenToy(Toy):
    async def step(self, action):
        raise OSError("gone")


@pytest.mark.parametrize(
    ("agent", "environment", "boundary", "kind"),
    [
        (Solo(Broken(), "teacher"), None, "teacher", "KeyError"),
        (routed(verifier=Broken()), None, "verifier", "ZeroDivisionError"),
        (routed(), BrokenToy(), "environment", "OSError"),
    ],
)
def test_what_breaks_is_recorded_with_its_boundary(agent, environment, boundary, kind):
    episode = run(agent, environment=environment)
    assert (episode.success, episode.stop) == (None, "error")
    assert (episode.failure.boundary, episode.failure.kind) == (boundary, kind)


class Odd(Flat):
    """Gives these scores."""

    def __init__(self, *scores):
        self.scores = scores

    async def score(self, context, actions):
        return self.scores


@pytest.mark.parametrize("scores", [(float("nan"), 0.5, 0.5), (0.5, 1.5, 0.5), (0.5,) * 2, (0.5,) * 4])
def test_a_verifier_whose_scores_are_none_broke(scores):
    episode = run(routed(verifier=Odd(*scores)))
    assert (episode.stop, episode.failure.boundary, episode.failure.kind) == ("error", "verifier", "ValueError")


@pytest.mark.parametrize("drawn", [(), (Candidate(Action("a"), float("nan"), None, Usage()),)])
def test_an_slm_without_candidates_or_with_odd_log_probabilities_broke(drawn):
    class Fixed:
        name = "fixed"

        async def propose(self, context, k, *, seed):
            return drawn

    for agent in (Routed(replace(routed().models, slm=Fixed()), Never()), Solo(Fixed(), "slm")):
        if isinstance(agent, Routed) or not drawn:
            assert run(agent).failure.boundary == "slm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"slm": None}, "the slm is None"), ({"verifier": ScriptedPolicy([])}, "has no method `score`"), ({"k": 0}, "k = 0"),
     ({"first": 3}, "first = 3"), ({"first": 0}, "first = 0")],
)  # fmt: skip
def test_models_that_cannot_act_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(routed().models, **changes)


def test_a_budget_is_never_exceeded():
    router = ThresholdRouter("all", lambda features: 1.0, 0.0)
    episode = run(routed(teacher="press blue", router=router), memory=Memory(calls_left=2), horizon=6)
    assert [step.choice.source for step in episode.steps] == ["teacher", "teacher", "slm", "slm", "slm", "slm"]
    spent = episode.steps[2].choice.decision
    assert (spent.route, spent.code, spent.propensity) == ("continue", "budget_exhausted", 1.0)
    assert spent.reason == "would escalate (risk_above: all 1.000 >= 0.000), but no call is left"
    for router in (Random(threshold=0.7), At("takeover", 1), Always()):
        for z in range(20):
            limited = run(routed(teacher="press blue", router=router), memory=Memory(calls_left=3), seed=z, horizon=8)
            calls = [step.choice.teacher.calls for step in limited.steps]
            assert sum(calls) <= 3 and len(calls) == 8
            last = [step.choice.decision.propensity for step in limited.steps if sum(calls[: step.t]) == 3]
            assert set(last) <= {1.0}  # the SLM goes on whatever is drawn
    wanted = Always().decide(Context("g", ("x",), (), 9), Features((), ()), Memory(), seed=0)
    assert within_budget(wanted, Memory()) is wanted and within_budget(wanted, Memory(1)) is wanted
    free = run(routed(teacher="press blue", router=Always()), horizon=8)
    assert sum(step.choice.teacher.calls for step in free.steps) == 8


def test_random_asks_at_its_rate_and_logs_the_propensity():
    asked = []
    for z in range(200):
        for step in run(routed(router=Random(threshold=0.3)), seed=z, horizon=5).steps:
            decision = step.choice.decision
            asked.append(decision.route == "escalate")
            assert decision.propensity == pytest.approx(0.3 if asked[-1] else 0.7)
    assert 0.25 < sum(asked) / len(asked) < 0.35


def test_step_seeds_do_not_depend_on_the_agent():
    class Recorder(ScriptedPolicy):
        async def propose(self, context, k, *, seed):
            self.seeds = [*getattr(self, "seeds", []), seed]
            return await super().propose(context, k, seed=seed)

    first, second = Recorder(lambda c: "press blue"), Recorder(lambda c: "press blue")
    for policy, router in ((first, Always()), (second, Random(threshold=0.5))):
        models = AgentModels(policy, ScriptedPolicy(lambda c: "press red"), Flat(), 3)
        run(Routed(models, router), horizon=3)
    assert first.seeds == second.seeds


def test_noise_is_marked():
    agent = Noisy(Solo(ScriptedPolicy(lambda c: "press red"), "teacher"), 0.5, lambda context, seed: Action("press blue"))
    episode = run(agent, horizon=30)
    assert {(s.choice.source, s.choice.action.text) for s in episode.steps} == {
        ("teacher", "press red"),
        ("noise", "press blue"),
    }


def test_the_best_candidate_wins_ties_by_likelihood_then_order():
    def candidate(text, logp):
        return Candidate(Action(text), logp, None, Usage())

    candidates = (candidate("a", -2.0), candidate("b", -1.0), candidate("c", -1.0))
    assert best(candidates, (0.5, 0.5, 0.5)) == 1
    assert best(candidates, (0.9, 0.5, 0.5)) == 0


class At:
    """Does `route` at step t and again while `retries` are fewer than `draws`; else goes on."""

    name = "at"

    def __init__(self, route, t, draws=1):
        self.route, self.t, self.draws = route, t, draws

    def decide(self, context, features, memory, *, seed):
        wanted = context.t == self.t and memory.retries < self.draws
        return Decision(self.route if wanted else "continue", "scheduled", None, None, None, 1.0, (), "as told")


def test_a_latched_teacher_keeps_the_episode_and_the_slm_is_not_asked_again():
    episode = run(routed(router=At("takeover", 2)), horizon=8)
    assert [step.choice.source for step in episode.steps] == ["slm", "slm", "teacher", "teacher", "teacher"]
    assert [step.choice.slm.calls for step in episode.steps[3:]] == [0, 0]
    assert episode.steps[-1].choice.decision.route == "takeover"
    limited = run(routed(router=At("takeover", 0)), horizon=4, memory=Memory(calls_left=2))
    assert [step.choice.source for step in limited.steps] == ["teacher", "teacher", "slm", "slm"]


class Draws:
    """Another candidate for every seed."""

    name = "draws"

    async def propose(self, context, k, *, seed):
        return tuple(
            Candidate(Action(f"press {(seed + i) % 1000}"), -1.0, 0.5, Usage(1 if i == 0 else 0, 7)) for i in range(k)
        )


def test_a_retry_adds_candidates_and_is_paid_for():
    models = AgentModels(Draws(), ScriptedPolicy(lambda c: "press red"), Flat(), 3)
    plain, twice = (run(Routed(models, At("retry", 0, draws)), horizon=2) for draws in (0, 2))
    first, more = plain.steps[0].choice, twice.steps[0].choice
    assert more.candidates[:3] == first.candidates
    assert len({c.action for c in more.candidates}) == 9
    assert (first.slm.calls, more.slm.calls, more.slm.prompt_tokens) == (1, 3, 21)
    assert plain.steps[1].choice.slm.calls == twice.steps[1].choice.slm.calls == 1
    endless = run(Routed(models, At("retry", 0, 99)), horizon=2)
    assert endless.failure.boundary == "router" and "retries" in endless.failure.message


def test_a_fork_shares_the_past_and_draws_another_future():
    models = AgentModels(Draws(), ScriptedPolicy(lambda c: "press red"), Flat(), 3)
    other = replace(models, draw=1)
    alone = run(Routed(models, Never()), horizon=6)
    fork = run(Forked(Routed(models, Never()), Routed(other, Never()), 2), horizon=6)
    texts, forked = ([step.choice.action.text for step in e.steps] for e in (alone, fork))
    assert forked[:3] == texts[:3]
    assert all(a != b for a, b in zip(forked[3:], texts[3:], strict=True))


@pytest.mark.parametrize(
    ("router", "memory", "expected"),
    [
        (Never(), Memory(), ("continue", "never")), (Always(), Memory(), ("escalate", "always")),
        (Redraw(), Memory(), ("retry", "retry")), (Redraw(), Memory(retries=1), ("continue", "scheduled")),
        (AtSteps(frozenset([1])), Memory(), ("escalate", "scheduled")),
        (AtSteps(frozenset([2])), Memory(), ("continue", "scheduled")),
    ],
)  # fmt: skip
def test_fixed_routers_say_what_they_do(router, memory, expected):
    decision = router.decide(Context("g", ("a", "b"), (Action("x"),), 9), None, memory, seed=0)
    assert decision == Decision(*expected, None, None, None, 1.0, (), decision.reason)
    assert [type(r)().name for r in (Never(), Always(), Redraw())] == ["slm_only", "llm_only", "redraw"]


def test_every_random_number_of_an_episode_has_its_own_seed():
    """These seeds are part of the results: with others, recorded runs would not be played again."""
    told = []

    class Told(ScriptedPolicy):
        async def propose(self, context, k, *, seed):
            told.append((self.name, k, seed))
            return await super().propose(context, k, seed=seed)

    class Twice(Redraw):
        def decide(self, context, features, memory, *, seed):
            told.append(("router", memory.seed, seed))
            return super().decide(context, features, memory, seed=seed)

    slm, teacher = Told(lambda c: "press blue", "slm"), Told(lambda c: "press red", "teacher")
    step = derive_seed("toy/press/1", 7, 0)
    run(Routed(AgentModels(slm, teacher, Flat(), 3), Twice()), horizon=1, seed=7)
    episode = derive_seed("toy/press/1", 7, "episode")
    assert told == [
        ("slm", 3, derive_seed(step, "slm")), ("router", episode, derive_seed(step, "router")),
        ("slm", 3, derive_seed(step, "slm", 0, 1)), ("router", episode, derive_seed(step, "router", 1)),
    ]  # fmt: skip
    told.clear()
    run(Routed(AgentModels(slm, teacher, Flat(), 3, draw=2), Always()), horizon=1, seed=7)
    run(Solo(slm, "slm"), horizon=1, seed=7)
    assert told == [
        ("slm", 3, derive_seed(step, "slm", 2, 0)), ("teacher", 1, derive_seed(step, "teacher")),
        ("slm", 1, derive_seed(step, "slm")),
    ]  # fmt: skip
    drawn = []
    noisy = Noisy(Solo(teacher, "teacher"), 0.5, lambda context, seed: drawn.append(seed) or Action("press blue"))
    steps = run(noisy, horizon=20, seed=7).steps
    seeds = [derive_seed("toy/press/1", 7, t) for t in range(len(steps))]
    noise = [derive_uniform(seed, "noise?") < 0.5 for seed in seeds]
    assert [s.choice.source == "noise" for s in steps] == noise
    assert drawn == [derive_seed(seed, "noise") for seed, replaced in zip(seeds, noise, strict=True) if replaced]
    assert noisy.name == "teacher+noise"


def test_who_is_paid_for_what():
    class Paid(ScriptedPolicy):
        async def propose(self, context, k, *, seed):
            return tuple(replace(c, usage=Usage(1, 7, 2, 0.5)) for c in await super().propose(context, k, seed=seed))

    one = Paid(lambda c: "press red", "one")
    for source, paid in (("slm", (Usage(1, 7, 2, 0.5), NO_USAGE)), ("teacher", (NO_USAGE, Usage(1, 7, 2, 0.5)))):
        choice = run(Solo(one, source), horizon=1).steps[0].choice
        assert ((choice.slm, choice.teacher), choice.source) == (paid, source)
    both = Usage(1, 7, 2, 0.5) + Usage(2, 1, 1, 0.25)
    assert both == Usage(3, 8, 3, 0.75)
    assert Usage(1, 7, None, 0.5) + Usage(1, 1, 1, None) == Usage(2, 8, None, None)
    assert Usage(1, 7) + NO_USAGE == NO_USAGE + Usage(1, 7) == Usage(1, 7)


@pytest.mark.parametrize(
    ("first", "sizes"), [(None, [4, 4, 4]), (1, [1, 3, 4]), (3, [3, 1, 4])]
)  # fmt: skip
def test_the_first_draw_may_be_smaller_and_the_second_fills_it_up(first, sizes):
    models = AgentModels(Draws(), ScriptedPolicy(lambda c: "press red"), Flat(), 4, first=first)
    assert [models.size(retries) for retries in range(3)] == sizes
    choice = run(Routed(models, At("retry", 0, 2)), horizon=1).steps[0].choice
    assert (len(choice.candidates), choice.slm.calls, len(choice.scores)) == (sum(sizes), 3, sum(sizes))


def test_calls_are_counted_down_where_the_teacher_is_called():
    def after(route, left):
        decision = Decision(route, "scheduled", None, None, None, 1.0, (), "")
        memory = Memory(calls_left=left, seed=5, retries=2).after(decision)
        assert (memory.seed, memory.retries, memory.decisions) == (5, 0, (decision,))
        return memory.calls_left

    assert [after(route, 3) for route in ("continue", "restart", "escalate", "takeover")] == [3, 3, 2, 2]
    assert after("escalate", None) is None
    kept = run(routed(router=At("takeover", 0)), horizon=3, memory=Memory(calls_left=1)).steps
    assert [step.choice.decision.code for step in kept] == ["scheduled", "scheduled", "scheduled"]
    latched = run(routed(slm="x", teacher="y", router=At("takeover", 0)), horizon=2).steps[1].choice.decision
    assert latched == Decision("takeover", "latch", None, None, None, 1.0, (), latched.reason)
    asked = run(routed(router=AtSteps(frozenset([0, 2]))), horizon=4)
    assert asked.llm_call_rate == 0.5 and replace(asked, steps=()).llm_call_rate == 0.0
    context = asked.contexts(4)[2]
    assert context.t == 2 and context.history(1) == ("press red.", context.observations[:2], ("press red",))


def test_a_failed_or_unscored_end_is_not_a_success():
    class Unscored(Toy):
        async def step(self, action):
            return replace(await super().step(action), done=True, success=None)

    class Lost(Toy):
        async def step(self, action):
            return replace(await super().step(action), done=True, success=False)

    ends = [(e.success, e.stop) for e in (run(routed(), environment=world) for world in (Unscored(), Lost()))]
    assert ends == [(None, "done"), (False, "done")]
    broken = run(Solo(Broken(), "slm"))
    assert (broken.failure.boundary, broken.failure.kind, broken.failure.message) == ("slm", "KeyError", "'no answer'")
