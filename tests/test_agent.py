"""The one loop: agents play whole episodes, what breaks is recorded, budgets hold, randomness is paired."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Forked, Noisy, Routed, Solo
from r2v.core.features import best
from r2v.core.fixed import Always, Never
from r2v.core.types import Action, Candidate, Decision, Memory, Usage
from r2v.routers.random import Random
from toy import Budgeted, Flat, ThresholdRouter, Toy, routed, run


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


def test_a_budget_is_never_exceeded():
    router = Budgeted(ThresholdRouter("all", lambda features: 1.0, 0.0))
    episode = run(routed(router=router), memory=Memory(calls_left=2), horizon=6)
    assert [step.choice.source for step in episode.steps] == ["teacher", "teacher", "slm", "slm", "slm", "slm"]
    assert "no calls are left" in episode.steps[2].choice.decision.reason


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
