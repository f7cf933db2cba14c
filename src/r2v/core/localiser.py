"""Names the step at which a failed episode went wrong: a weighted sum of what each step looks like, softmax over the steps.

The weights come from failures in which the decisive step is known (`r2v.learning.localise`); here they are applied, with
NumPy alone. It judges afterwards: unlike a router it reads what came after a step, too, but never the outcome's reason.
Texts are read up to `CLIP` characters and words one by one, so that no text can hold it up.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r2v.core.arrays import from_file
from r2v.core.errors import ArtifactError
from r2v.core.features import FEATURES
from r2v.core.types import Episode, Step
from r2v.core.untrusted import ROUTER_BYTES, read_json
from r2v.maths import Floats

CLIP = 4_000
"""Characters read of a text: the first two thirds and the last third of them."""
SHORT = 60
"""Characters below which a message says next to nothing."""
ALIKE = 300
"""Characters in which a message that repeats an earlier one agrees with it."""
FIRST = 10
"""Steps whose position has a weight of its own."""
FIRST_WORKERS = 4
"""The same for turns of whoever is no user, tool or leader."""
WEIGHTS, CARD = "weights.safetensors", "localiser.json"
FORMAT = 1

_WORD, _NUMBER = re.compile(r"[a-z']{1,30}"), re.compile(r"\d[\d,.]{0,30}")
_COMMON = frozenset({"a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "of", "on", "that", "the", "to"})
_SAYS = {
    "guesses": "assum* guess* likely probabl* presum* suppos* perhaps might maybe typical*",
    "makes_up": "simulat* hypothe* placeholder* example* sample* mock* dummy illustrat* pretend*",
    "is_sure": "therefore thus hence confirm* clearly correct* accura* indeed certain*",
    "error": "error* exception* traceback fail* denied timeout invalid undefined nameerror typeerror valueerror",
    "cannot": "cannot can't unable couldn't impossible unfortunately unavailable inaccessible don't",
    "again": "retry again instead alternative* another fix* adjust* updat* revis* re apolog* sorry",
    "answers": "answer* solution* result* conclu* boxed output",
    "plans": "plan* first next step* let's begin start* will need* going",
    "ends": "terminate complet* finish* done succe*",
    "from_memory": "manual* based known knowledge recall* memory general*",
    "looks_up": "search* brows* website* visit* click* scroll* page* typed link* url* http https",
    "computes": "calculat* comput* sum total average count* formula* equation* divid* multipl*",
    "nothing": "no nothing none empty null",
    "checks": "verif* check* validat* cross review*",
}
"""Words by what they say; a star stands for any ending."""
_SPEAKER = {
    "user": ("user", "human", "customer", "client"),
    "tool": ("terminal", "tool", "executor", "environment", "system", "computer"),
    "leader": ("orchestrat", "manager", "planner", "supervis", "coordinat", "thought"),
    "searcher": ("surfer", "web", "brows", "search", "file"),
    "checker": ("verif", "check", "valid", "review", "critic", "evaluat"),
    "coder": ("code", "coding", "python", "program", "data", "math", "statistic", "analy"),
    "expert": ("expert", "assistant"),
    "addresses": ("->",),
}
"""Parts of names by who bears them. Names of people or models say nothing here, so they are worth the same."""


@dataclass(frozen=True)
class FailureLabel:
    """A failed episode and the step at which it went wrong, because somebody said so or because a branch showed it."""

    episode: Episode
    step: int
    """From 0. ValueError is raised where the episode has no such step."""

    def __post_init__(self) -> None:
        if not 0 <= self.step < len(self.episode.steps):
            raise ValueError(f"{self.episode.task.id} has {len(self.episode.steps)} steps, none numbered {self.step}")


def labels_of(episodes: Sequence[Episode]) -> list[FailureLabel]:
    """Of the episodes that failed and whose decisive step is known (`Episode.mistake`)."""
    return [FailureLabel(e, e.mistake) for e in episodes if e.mistake is not None and not e.success]


class Turn(NamedTuple):
    """What is read of a step."""

    speaker: str
    text: str
    after: str
    """What it led to: what the agent saw next, or, where it saw nothing, what was said next."""


def turns_of(episode: Episode) -> list[Turn]:
    texts = [_clipped(_words_of(step)) for step in episode.steps]
    seen = [step.observation.text for step in episode.steps[1:]] + ["" if episode.final is None else episode.final.text]
    after = [_clipped(text) or following for text, following in zip(seen, [*texts[1:], ""], strict=False)]
    names = ["" if (reply := step.choice.reply) is None else (reply.name or "")[:100] for step in episode.steps]
    return [Turn(*parts) for parts in zip(names, texts, after, strict=False)]


def _words_of(step: Step) -> str:
    action, reply = step.choice.action, step.choice.reply
    return f"{reply.content}\n{action.text}" if action.tool_calls and reply and reply.content else action.text


def _clipped(text: str) -> str:
    return text if len(text) <= CLIP else f"{text[: CLIP * 2 // 3]} {text[-CLIP // 3 :]}"


def step_features(episode: Episode) -> Floats:
    """[T, F]: a row for each step of the episode, a column for each of `NAMES`; 0 where a router's feature is not known."""
    rows = [list(row.values()) for row in _rows(episode.goal, turns_of(episode))]
    for row, step in zip(rows, episode.steps, strict=True):
        known = step.choice.features
        row += [0.0] * len(FEATURES) if known is None else known.values
    return np.array(rows).reshape(-1, len(NAMES))


class _Said(NamedTuple):
    """What a text says."""

    words: frozenset[str]
    numbers: frozenset[str]
    kinds: Counter[str]


@lru_cache(maxsize=2)  # what came after a step is often the next one's text
def _said(text: str) -> _Said:
    words = Counter(_WORD.findall(text.lower()))
    kinds = Counter[str]()
    for word, count in words.items():
        for kind in _kinds(word):
            kinds[kind] += count
    return _Said(frozenset(words), frozenset(_NUMBER.findall(text)), kinds)


@lru_cache(maxsize=16_384)
def _kinds(word: str) -> tuple[str, ...]:
    return tuple(
        kind
        for kind, patterns in _SAYS.items()
        if any(word.startswith(p[:-1]) if p[-1] == "*" else word == p for p in patterns.split())
    )


@lru_cache(maxsize=1024)
def _speaker(name: str) -> dict[str, bool]:
    return {kind: any(part in name.lower() for part in parts) for kind, parts in _SPEAKER.items()}


def _rows(goal: str, turns: Sequence[Turn]) -> list[dict[str, float]]:
    """Numbers of each step, relative to its episode."""
    n = len(turns)
    asked = _said(_clipped(goal))
    goal_words = asked.words - _COMMON
    words, numbers = set(asked.words), set(asked.numbers)  # read so far
    speakers, texts, so_far = Counter[str](), Counter[str](), Counter[str]()
    rows = []
    around = [Turn("", "", ""), *turns, Turn("", "", "")]
    for t, (speaker, text, after) in enumerate(turns):
        before, later = around[t].speaker, around[t + 2].speaker
        who, said, led = _speaker(speaker), _said(text), _said(after)
        works = not (who["user"] or who["leader"] or (who["tool"] and not who["expert"]))
        code = "```" in text or "import " in text or "def " in text
        # The first message often repeats the task, which asks for an answer and for checks.
        answers, checks = t > 0 and said.kinds["answers"] > 0, t > 0 and said.kinds["checks"] > 0
        error = led.kinds["error"] > 0
        new_numbers = math.log1p(len(said.numbers - numbers))
        row = {f"is_step_{i}": float(t == i) for i in range(FIRST)}
        row |= {f"is_worker_{i}": float(works and so_far["works"] == i) for i in range(FIRST_WORKERS)}
        row |= {f"speaker_{kind}": float(found) for kind, found in who.items()}
        row |= {f"says_{kind}": math.log1p(said.kinds[kind]) for kind in _SAYS}
        row |= {
            "log_step": math.log1p(t),
            "fraction": t / max(1, n - 1),
            "fraction_squared": (t / max(1, n - 1)) ** 2,
            "is_last": float(t == n - 1),
            "is_last_but_one": float(t == n - 2),
            "is_last_but_two": float(t == n - 3),
            "works": float(works),
            "log_worker": math.log1p(so_far["works"]) * works,
            "first_turn": float(speakers[speaker] == 0),
            "second_turn": float(speakers[speaker] == 1),
            "log_turns": math.log1p(speakers[speaker]),
            "speaks_on": float(t > 0 and before == speaker),
            "goes_on": float(t < n - 1 and later == speaker),
            "after_a_tool": float(_speaker(before)["tool"]),
            "before_a_tool": float(_speaker(later)["tool"]),
            "was_addressed": float(_speaker(before)["addresses"]),
            "log_length": math.log1p(len(text)),
            "is_short": float(len(text) < SHORT),
            "code": float(code),
            "first_code": float(code and not so_far["code"]),
            "asks": math.log1p(text.count("?")),
            "numbers": math.log1p(len(said.numbers)),
            "new_numbers": new_numbers,
            "new_numbers_without_code": new_numbers * (not code),
            "new_words": len(said.words - words) / max(1, len(said.words)),
            "goal_words": len(said.words & goal_words) / max(1, len(goal_words)),
            "repeats": float(texts[text[:ALIKE]] > 0),
            "first_answer": float(answers and not so_far["answers"]),
            "was_answered": float(so_far["answers"] > 0),
            "first_check": float(checks and not so_far["checks"]),
            "errors_so_far": math.log1p(so_far["error"]),
            "leads_to_error": float(error),
            "leads_to_first_error": float(error and not so_far["error"]),
            "leads_to_cannot": float(led.kinds["cannot"] > 0),
            "leads_to_nothing": float(led.kinds["nothing"] > 0),
            "leads_to_success": float(led.kinds["ends"] > 0),
            "leads_to_again": math.log1p(led.kinds["again"]),
            "leads_to_check": float(led.kinds["checks"] > 0),
            "leads_to_length": math.log1p(len(after)),
        }
        rows.append(row)
        words |= said.words
        numbers |= said.numbers
        speakers[speaker] += 1
        texts[text[:ALIKE]] += 1
        so_far.update({"works": works, "code": code, "answers": answers, "checks": checks, "error": error})
    return rows


NAMES = (*_rows("", [Turn("", "", "")])[0], *(f"router_{name}" for name in FEATURES))
"""What is read of the step in its episode, then what a router sees of it."""


@dataclass(frozen=True, eq=False)
class Localiser:
    """Features are clipped to the range that they had in the fit: beyond it the fit says nothing."""

    names: tuple[str, ...]
    """Features that it reads, of `NAMES`."""
    mean_F: Floats
    std_F: Floats
    range_2F: Floats
    """Lowest and highest value of each feature in the fit."""
    weight_F: Floats
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Its card: what it was fitted on, and what it is worth on failures left out."""

    def __post_init__(self) -> None:
        if unknown := set(self.names) - set(NAMES):
            raise ValueError(f"unknown features {sorted(unknown)}")
        shapes = [self.mean_F.shape, self.std_F.shape, self.range_2F[0].shape, self.weight_F.shape]
        if shapes != [(len(self.names),)] * 4 or len(self.range_2F) != 2:
            raise ValueError(f"arrays of the shapes {shapes} do not fit {len(self.names)} features")
        if not (self.std_F > 0).all():
            raise ValueError("a spread is not above 0")

    @cached_property
    def columns(self) -> list[int]:
        """Positions of its features in `NAMES`."""
        return [NAMES.index(name) for name in self.names]

    def standardised(self, x_TF: Floats) -> Floats:
        """[T, columns of its own] of a row for each step with a column for each of `NAMES`."""
        low_F, high_F = self.range_2F
        return np.asarray((np.minimum(np.maximum(x_TF[:, self.columns], low_F), high_F) - self.mean_F) / self.std_F)

    def probabilities(self, episode: Episode) -> Floats:
        """Of each step, the probability that it is the decisive one, given that the episode failed; empty without steps."""
        return self.of_features(step_features(episode))

    def of_features(self, x_TF: Floats) -> Floats:
        if not len(x_TF):
            return np.zeros(0)
        z_T = self.standardised(x_TF) @ self.weight_F
        e_T = np.exp(z_T - z_T.max())
        return np.asarray(e_T / e_T.sum())

    @property
    def arrays(self) -> dict[str, Floats]:
        """What its folder holds as numbers."""
        return {"mean": self.mean_F, "std": self.std_F, "range": self.range_2F, "weight": self.weight_F}


def load_localiser(folder: Path) -> Localiser:
    """From a folder that `r2v.learning.localise.save_localiser` wrote. Raises ArtifactError."""
    arrays = from_file(folder / WEIGHTS)
    try:
        card = read_json(folder / CARD, ROUTER_BYTES, within=folder)
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']}, this r2v reads {FORMAT}")
        return Localiser(
            tuple(card["features"]), arrays["mean"], arrays["std"], arrays["range"], arrays["weight"], dict(card["facts"])
        )
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"{folder} is no localiser ({error}); fit it again") from None
