"""The data that flows: one record (`Episode`) and one decision (`Decision`).

Every stage reads episodes and writes episodes, or something fitted on them. All types are frozen. Units: log-probabilities
and entropies in nats, money in USD, time in seconds; probabilities, scores and rewards in [0, 1]. `None` means "not known",
never 0 and never False. No number in `Episode`, `Step` or `Decision` has a default: a forgotten seed must not become a
silent 0 (that is how CVaR was switched off in the paper's released code). Only what later versions added has one (messages,
verdicts, the source of an outcome, what scores cost), and it says that there is none: files of before still load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from r2v.core.seeds import call_seed, step_seed

Route = Literal["continue", "retry", "escalate", "takeover", "restart"]
"""What a router may decide: let the SLM's best candidate act; draw further candidates and decide again; escalate
this step to the teacher; escalate this step and all that follow; go back to the start of the episode (this step is
lost; only where the environment can be copied)."""

Code = Literal[
    "risk_below", "risk_above", "retry", "latch", "never", "always", "random", "scheduled", "recorded",
    "no_valid_call", "repeats_failure", "unsure", "out_of_range",
    "budget_exhausted", "forced", "switch_cost", "hold", "shadow", "explore", "upstream_fallback", "verifier_failed",
    "early", "observe",
]  # fmt: skip
"""Why a route was taken, as a word that programs may compare. The first two lines are of routers: the score is below or at
least the threshold, more candidates are wanted, an earlier takeover goes on, or the route is fixed, drawn or recorded; no
candidate can be executed, the best one is what just failed, the SLM is unsure, or a feature lies far outside of what the
router was fitted on. The others are what the gateway adds."""

ScoreKind = Literal[
    "risk", "mean_risk", "goal_risk", "benefit", "disagreement", "entropy", "verifier_doubt", "heuristic", "custom"
]
"""What a score estimates: P(the SLM fails the episode) at this step, its mean so far, or from the goal alone; what an
escalation adds to the chance of success; P(the teacher would act otherwise); nats; 1 - best verifier score; no unit."""

Source = Literal["slm", "teacher", "noise"]
"""Who chose the executed action: the SLM, or the model that the decision names. `noise` marks a random action injected
while collecting; no loss is put on it."""

Stop = Literal["done", "horizon", "error"]

TEACHER = "teacher"
"""Name of the strongest model of a pool; a router may know further ones by the names that the settings give them."""

SOLVED = 0.5
"""Reward of a whole episode from which on it counts as solved."""


def is_hashed(text: str) -> bool:
    """Whether a redacted ledger kept this in the place of a text."""
    return text.startswith(("hmac:", "sha256:"))


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do. `family` is the stratum of the split; `environment` names who can play `id`."""

    id: str
    family: str
    environment: str
    goal: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str
    """JSON text, exactly as the model wrote it."""
    id: str = field(default="", compare=False)
    """What its result refers to; only in a `Message`. Equal calls are equal actions, whatever their ids."""


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat, in OpenAI's roles. Parts that are not text are named, not kept."""

    role: Role
    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """Of a tool's result: the id of the call that it answers."""
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Action:
    text: str
    tool_calls: tuple[ToolCall, ...] = ()


RESTART = Action("(restart)")
"""What is recorded as the action of a step on which the episode went back to its start."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing a perturbation did to a text: which family and operator, and in words what it changed."""

    family: str
    operator: str
    detail: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What the environment answered, perturbation included."""

    text: str
    done: bool
    success: bool | None
    """Set if and only if the episode is done and was scored."""
    reward: float | None
    """The reward the agent may see; None where the environment shows none."""
    latent: str
    """Hash of the unperturbed state: equal hashes are two views of one state (consistency pairs)."""
    changes: tuple[Change, ...]
    """What the perturbation did; empty = untouched."""


@dataclass(frozen=True, slots=True)
class Context:
    """All an agent knows when it acts: the goal, t+1 observation texts, the t actions between them, H steps at most."""

    goal: str
    observations: tuple[str, ...]
    actions: tuple[Action, ...]
    horizon: int
    proposed: Action | None = None
    """The SLM's best candidate, where it has been drawn: for routers that read."""
    verdicts: tuple[tuple[str, float], ...] = ()
    """(name, value) of each verdict (`r2v.verdicts`) that knows one from what was seen so far."""

    @property
    def t(self) -> int:
        """Steps already taken."""
        return len(self.actions)

    def history(self, t: int) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """(goal, observations, commands) as known at step t: a key for what a policy remembers of an episode."""
        return self.goal, self.observations[: t + 1], tuple(action.text for action in self.actions[:t])


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost. Token counts are None where the backend does not count them (a scripted policy has no tokens)."""

    calls: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usd: float | None = None

    def __add__(self, other: Usage) -> Usage:
        """Both together; a quantity unknown for one of two calls is unknown for both."""
        if not self.calls or not other.calls:
            return self if self.calls else other
        prompt, completion, usd = (
            None if a is None or b is None else a + b
            for a, b in (
                (self.prompt_tokens, other.prompt_tokens),
                (self.completion_tokens, other.completion_tokens),
                (self.usd, other.usd),
            )
        )
        return Usage(self.calls + other.calls, prompt, completion, usd)  # type: ignore[arg-type]


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One proposed action. `logp` sums over the action's tokens; `entropy` is that of the first action token. Of candidates
    that were drawn together the first one's `usage` is that of the draw.
    """

    action: Action
    logp: float | None
    entropy: float | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Features:
    """One row of router inputs. `present[i]` is False where `values[i]` is unknown (its value is then 0.0)."""

    values: tuple[float, ...]
    present: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the router decided at one step, and why."""

    route: Route
    code: Code
    score: float | None
    """What was compared with the threshold."""
    score_kind: ScoreKind | None
    """What the score estimates; None without a score. Scores of two kinds are never compared."""
    threshold: float | None
    propensity: float
    """Probability with which this route was drawn (1.0 when deterministic): makes logs reusable off-policy."""
    state: tuple[float, ...]
    """What the router wants to read again at the next step (from `Memory.decisions`); empty for most."""
    reason: str
    """One line for people; no program reads it."""
    model: str = TEACHER
    """Which model of the pool acts where the route is `escalate` or `takeover`; on every other route nobody asks it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A stronger model than the SLM, to which a router may escalate."""

    name: str
    price: float
    """Of one of its calls, in calls of the teacher."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The action that was executed, who chose it, and everything the decision rested on."""

    action: Action
    source: Source
    candidates: tuple[Candidate, ...]
    scores: tuple[float, ...]
    """Verifier score of each candidate."""
    features: Features | None
    decision: Decision | None
    slm: Usage
    teacher: Usage
    reply: Message | None = None
    """The executed action as the model's whole message, words beside tool calls included; None where no chat is kept."""
    parsed_calls: int = 0
    """Tool calls of the executed action that its model wrote as text."""
    verifier: Usage = NO_USAGE
    """What the scores cost, where the verifier is a model."""

    @property
    def model(self) -> str:
        """Who acted: slm, noise, teacher, or another model of the pool."""
        return self.decision.model if self.source == "teacher" and self.decision is not None else self.source


@dataclass(frozen=True, slots=True)
class Memory:
    """All that survives from one step to the next besides the context."""

    calls_left: int | None = None
    """Teacher calls still allowed; None = no limit."""
    seed: int = 0
    """For draws that hold for the whole episode. The loop sets it; agents compared on one episode share it."""
    decisions: tuple[Decision, ...] = ()
    """What the router decided so far, a step each (of a step with retries, its last)."""
    retries: int = 0
    """How often further candidates were drawn at this step."""

    def after(self, decision: Decision) -> Memory:
        """What the next step has to know."""
        left = self.calls_left
        if left is not None and decision.route in ("escalate", "takeover"):
            left -= 1
        return Memory(left, self.seed, (*self.decisions, decision))


@dataclass(frozen=True, slots=True)
class Step:
    """Observation seen at step t, under perturbation seed `seed`, and the choice made on it."""

    t: int
    seed: int
    observation: Observation
    choice: Choice
    messages: tuple[Message, ...] = ()
    """What came into the chat since the step before: system, user, tool results. Empty where no chat is kept."""
    alike: bool | None = None
    """Where the teacher answered beside a draft of the SLM: whether both do the same, as far as it was compared."""
    verdicts: tuple[tuple[str, float], ...] = ()
    """(name, value) of each verdict (`r2v.verdicts`) that knew one when this step was decided: 1 right, 0 wrong."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What broke, where: the boundary ("policy", "verifier", "environment", ...), the exception type, its message."""

    boundary: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Episode:
    """One played episode: enough to be read without the run's configuration."""

    task: Task
    seed: int
    """Perturbation seed; 0 = clean."""
    perturbation: str
    """Perturbation family of this episode ("none" when clean)."""
    agent: str
    """Name of the agent that played it."""
    goal: str
    """The goal as the agent read it, perturbation included."""
    steps: tuple[Step, ...]
    final: Observation | None
    """What the last action led to; None when the episode broke before any answer."""
    success: bool | None
    stop: Stop
    failure: Failure | None
    tools: str = ""
    """JSON text of the tools that were offered, in OpenAI's form."""
    closing: tuple[Message, ...] = ()
    """What came into the chat after the last step."""
    outcome_source: str = ""
    """The verdict (`r2v.verdicts`) that `success` was taken from; empty where the outcome was seen or sent."""
    mistake: int | None = None
    """The step at which it went wrong, if somebody labelled it or a branch showed it."""
    severity: float | None = None
    """Factor on the strength of its perturbation, where the run draws one for each episode."""

    def contexts(self, horizon: int) -> list[Context]:
        """What the agent knew at each step: nothing of before a restart, but that it took steps."""
        observations = tuple(step.observation.text for step in self.steps)
        actions = tuple(step.choice.action for step in self.steps)
        known, start = [], 0
        for t in range(len(actions)):
            if t and actions[t - 1] == RESTART:
                start = t
            verdicts = self.steps[t].verdicts
            known.append(
                Context(self.goal, observations[start : t + 1], actions[start:t], horizon - start, verdicts=verdicts)
            )
        return known

    def call_seed(self, t: int, who: str) -> int:
        """The seed with which `who` is asked at step t (`r2v.core.seeds.call_seed`): so its answer can be had again."""
        return call_seed(step_seed(self.task.id, self.seed, t), who)

    @property
    def llm_call_rate(self) -> float:
        """Share of this episode's steps on which the teacher was called; 0.0 for an episode without steps."""
        return sum(step.choice.teacher.calls > 0 for step in self.steps) / max(1, len(self.steps))
