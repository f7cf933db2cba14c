"""The one text form in which local models read an episode, in training and when acting.

    Task: put a clean plate in cabinet.
    You are in the middle of a room. Looking quickly around you, you see a cabinet 2, and a sinkbasin 1.
    > go to cabinet 2<eos>
    You arrive at cabinet 2. The cabinet 2 is closed.
    >

Segments are tokenised one by one, so a longer context extends the tokens of its prefix and never changes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

PROMPT = "\n> "


def opening(goal: str, observation: str) -> str:
    """First segment: the goal and the first observation, up to the first action."""
    return f"Task: {goal}\n{observation}{PROMPT}"


def answer(observation: str) -> str:
    """Segment after an action (whose own segment is its text and the end-of-sequence token)."""
    return f"\n{observation}{PROMPT}"


def segments(goal: str, observations: Sequence[str], actions: Sequence[str]) -> list[tuple[str, bool]]:
    """[(text, is an action), ...]; as many observations as actions, or one more."""
    result = [(opening(goal, observations[0]), False)]
    for t, action in enumerate(actions):
        result.append((action, True))
        if t + 1 < len(observations):
            result.append((answer(observations[t + 1]), False))
    return result


class Encoder:
    """Tokenises segments, each text once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._eos: int = tokenizer.eos_token_id
        self._seen: dict[str, list[int]] = {}
        self.bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def learn(self, texts: Iterable[str]) -> None:
        """Tokenise many texts at once, which is several times as fast as one by one."""
        new = [text for text in dict.fromkeys(texts) if text not in self._seen]
        if new:
            tokens = self._tokenizer(new, add_special_tokens=False)["input_ids"]
            self._seen.update(zip(new, tokens, strict=True))

    def __call__(self, text: str, *, action: bool) -> list[int]:
        tokens = self._seen.get(text)
        if tokens is None:
            tokens = self._seen[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*tokens, self._eos] if action else tokens
