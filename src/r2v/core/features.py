"""What the router sees of a step: numbers from the candidates, their scores and the context (method, section 5).

`FEATURES` is the ordered table; the first 15 are the paper's (`PAPER`), the rest are text signals that any agent has
(`EXTENDED` = all). The router standardises them with training statistics. A value is absent where its source is unknown,
e.g. log-probabilities of a closed model. Plain Python on purpose: at K = 5 an array costs more than its arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from r2v.core.types import Candidate, Context, Features
from r2v.maths import Bools, Floats

PAPER = (
    "first_token_entropy", "verifier_spread", "verifier_mean", "verifier_std", "verifier_best", "verifier_worst",
    "logp_best", "logp_mean", "logp_std", "candidate_consistency", "semantic_entropy", "horizon_fraction", "step_index",
    "context_length", "goal_length",
)  # fmt: skip
EXTENDED = (
    *PAPER, "best_repeats", "last_observation_repeats", "repeats_in_last_five", "distinct_actions", "steps_since_new",
    "last_observation_length", "unseen_words", "chosen_logp", "chosen_share", "chosen_names_goal", "goal_seen",
    "goal_in_last", "goal_in_actions", "steps_since_goal",
)  # fmt: skip
OWN = (
    "first_token_entropy", "logp_best", "logp_mean", "logp_std", "candidate_consistency", "semantic_entropy",
    "horizon_fraction", "step_index", "best_repeats", "distinct_actions", "chosen_logp", "chosen_share", "chosen_names_goal",
    "goal_in_actions",
)  # fmt: skip
"""Of the SLM's own words and certainty alone: with the same candidates no text that others write moves them, but for which
candidate the verifier prefers."""
FEATURES = EXTENDED
View = Literal["full", "no_entropy", "pseudo_entropy"]
"""Everything; without log-probabilities, as with a closed model; the same with a stand-in for the entropy."""
NEEDS_LOGPROBS = ("first_token_entropy", "logp_best", "logp_mean", "logp_std", "chosen_logp")
LONG, NEAR, MOST_WORDS = 10_000, 4_000, 32
"""Characters of a context up to which all of it is searched. Of a longer one so many at the end of what was read and of what
was done, for so many words: a decision then takes as long on 500,000 characters as on 10,000."""
_LATEST = 10
"""Observations among which those that bring nothing new are counted."""
_END = 100
"""Characters at either end of a long text that tell it from others."""
_ROUNDING = 1e-3
"""By so much servers and sums of weights may exceed a bound."""
_COMMON = set("a an and are at for from in into it of on some that the then to two under with your".split())  # noqa: SIM905
"""Words of a goal that name nothing."""


def featurise(context: Context, candidates: Sequence[Candidate], scores: Sequence[float]) -> Features:
    """All `FEATURES` of one step. `scores` are the verifier's, one a candidate. Raises ValueError without candidates."""
    k = len(candidates)
    if k == 0 or len(scores) != k:
        raise ValueError(f"{k} candidates with {len(scores)} scores; every step needs at least one, each with a score")
    texts = [candidate.action.text for candidate in candidates]
    logps = [candidate.logp for candidate in candidates if candidate.logp is not None]
    entropy = candidates[0].entropy
    mean, std = _mean_std(scores)
    shares = [texts.count(text) / k for text in dict.fromkeys(texts)]
    leading = [text.split(" ", 1)[0] for text in texts]
    t = context.t
    actions = [action.text for action in context.actions]
    length = sum(map(len, context.observations)) + sum(map(len, actions))
    best_score = max(scores)
    goal, last, read, done = context.goal, context.observations[-1], "", ""
    if length <= LONG and len(goal) <= LONG:
        read, done = " ".join(context.observations[:-1]), "\n".join(actions)
    else:
        goal, last = (" ".join(text[:NEAR].split(" ", MOST_WORDS)[:MOST_WORDS]) for text in (goal, last))
        read, done = _end_of(context.observations[:-1], " "), _end_of(actions, "\n")
    chosen = candidates[best(candidates, scores)]
    values: list[float | None] = [
        entropy,
        best_score - min(scores),
        mean,
        std,
        best_score,
        min(scores),
        *((max(logps), *_mean_std(logps)) if len(logps) == k else (None, None, None)),
        max(map(leading.count, leading)) / k,
        -sum([share * math.log(share) for share in shares]),
        t / context.horizon,
        float(t),
        length / 10_000,
        len(context.goal) / 1_000,
        *_text_signals(context.observations, last, read, actions, chosen.action.text, length > LONG),
        chosen.logp,
        texts.count(chosen.action.text) / k,
        *_goal_signals(goal, read, last, done, len(actions), chosen.action.text[:LONG]),
    ]
    known = tuple([value is not None for value in values])
    return Features(tuple([0.0 if value is None else value for value in values]), known)


def check_context(context: Context) -> None:
    """Raises ValueError for a context in which no step can be decided."""
    seen, done = len(context.observations), len(context.actions)
    if seen != done + 1:
        raise ValueError(f"{seen} observations with {done} actions: one is seen before the first action, and one after each")
    if context.horizon < 1:
        raise ValueError(f"a horizon of {context.horizon} steps: there must be one at least")


def check_candidates(candidates: Sequence[Candidate]) -> None:
    """Raises ValueError without candidates, and for log-probabilities and entropies that cannot be any."""
    if not candidates:
        raise ValueError("no candidates: every step needs at least one")
    for one in candidates:
        if one.logp is not None and not -math.inf < one.logp <= _ROUNDING:
            raise ValueError(f"a log-probability of {one.logp}: it has to be finite, and 0 at most")
        if one.entropy is not None and not -_ROUNDING <= one.entropy < math.inf:
            raise ValueError(f"an entropy of {one.entropy}: it has to be finite, and 0 at least")


def check_scores(scores: Sequence[float], k: int) -> None:
    """Raises ValueError where there is not one score in [0, 1] for each of k candidates."""
    if len(scores) != k:
        raise ValueError(f"{k} candidates with {len(scores)} scores: each needs one")
    for score in scores:
        if not -_ROUNDING <= score <= 1 + _ROUNDING:
            raise ValueError(f"a score of {score}: it has to be in [0, 1]")


def best(candidates: Sequence[Candidate], scores: Sequence[float]) -> int:
    """Index of the candidate that acts: the best-scored one; ties go to the likelier, then to the earlier one."""
    return max(
        range(len(candidates)),
        key=lambda k: (scores[k], candidates[k].logp if candidates[k].logp is not None else float("-inf"), -k),
    )


def proposing(context: Context, candidates: Sequence[Candidate], scores: Sequence[float]) -> Context:
    """The context with the candidate that would act: what routers that read want to see."""
    proposed = candidates[best(candidates, scores)].action
    # `dataclasses.replace` takes four times as long.
    return Context(context.goal, context.observations, context.actions, context.horizon, proposed, context.verdicts)


def _end_of(texts: Sequence[str], between: str) -> str:
    """The last `NEAR` characters of the joined texts."""
    kept: list[str] = []
    room = NEAR
    for text in reversed(texts):
        if room <= 0:
            break
        kept.append(text[-room:])
        room -= len(text) + 1
    return between.join(reversed(kept))


def _text_signals(
    observations: Sequence[str], last: str, read: str, actions: Sequence[str], chosen: str, long: bool
) -> tuple[float, ...]:
    """Signs of being stuck or lost: repeats, nothing new, an odd last observation."""
    texts: Sequence[Hashable] = _marks(observations) if long else observations
    done: Sequence[Hashable] = _marks(actions) if long else actions
    first = dict(zip(reversed(texts), range(len(texts) - 1, -1, -1), strict=True))
    latest = texts[-_LATEST:]
    repeats = [first[text] < t for t, text in enumerate(latest, len(texts) - len(latest))]
    words = last.split(" ")
    return (
        float(min(actions.count(chosen), 5)),
        float(repeats[-1]),
        sum(repeats[-5:]) / 5,
        len(set(done)) / max(1, len(actions)),
        float(repeats[::-1].index(False) if False in repeats else _LATEST),
        len(observations[-1]) / 100,
        # As `word not in read`, in half the time where most words are not there and end alike, as numbered names do.
        list(map(read.rfind, words)).count(-1) / len(words) if len(observations) > 1 else 0.0,
    )


def _marks(texts: Sequence[str]) -> Sequence[Hashable]:
    """What tells long texts apart without reading all of them: length, beginning and end."""
    return [text if len(text) <= 2 * _END else (len(text), text[:_END], text[-_END:]) for text in texts]


def _goal_signals(goal: str, read: str, last: str, done: str, steps: int, chosen: str) -> tuple[float, ...]:
    """Signs of progress: which shares of the goal's words the action names, were read at all, just now, were acted on."""
    words = _words_of(goal)
    n = len(words)
    last = last.lower()
    old = [word for word in words if word not in last]
    at = list(map(done.rfind, words))
    newest = max(at, default=-1)
    read = read.lower()
    named, unseen = sum([word in chosen for word in words]), sum([word not in read for word in old])
    return (
        *[count / max(1, n) for count in (named, n - unseen, n - len(old), n - at.count(-1))],
        float(min(done.count("\n", newest) if newest >= 0 else steps, 15)),
    )


@lru_cache(maxsize=128)  # a goal of 10,000 characters takes up to 200 kB here
def _words_of(goal: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in re.findall(r"[a-z]+", goal.lower()) if word not in _COMMON))


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum([(value - mean) ** 2 for value in values]) / len(values))


def without_logprobs(features: Features) -> Features:
    """`no_entropy`: the features a closed model without log-probabilities leaves (1 and 7-9 masked)."""
    masked = [FEATURES.index(name) for name in NEEDS_LOGPROBS]
    return Features(
        tuple(0.0 if i in masked else value for i, value in enumerate(features.values)),
        tuple(present and i not in masked for i, present in enumerate(features.present)),
    )


def with_pseudo_entropy(features: Features, scores: Sequence[float]) -> Features:
    """`pseudo_entropy`: as `without_logprobs`, with H(softmax(scores)) in place of the first feature."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    entropy = -sum(w / total * math.log(w / total) for w in weights)
    masked = without_logprobs(features)
    return Features((entropy, *masked.values[1:]), (True, *masked.present[1:]))


def seen_as(view: View, features: Features, scores: Sequence[float]) -> Features:
    """What is left of the features of a step under `view`."""
    if view == "full":
        return features
    return without_logprobs(features) if view == "no_entropy" else with_pseudo_entropy(features, scores)


def batch(rows: Sequence[Features], names: Sequence[str] = FEATURES) -> tuple[Floats, Bools]:
    """(x_NF, present_NF) of the named features."""
    columns = [FEATURES.index(name) for name in names]
    x_NF = np.array([row.values for row in rows], dtype=np.float64).reshape(len(rows), len(FEATURES))
    present_NF = np.array([row.present for row in rows], dtype=bool).reshape(len(rows), len(FEATURES))
    return x_NF[:, columns], present_NF[:, columns]
