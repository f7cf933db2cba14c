"""The terminal verifier: is this command sensible after the last output of the terminal? No oracle (method, section 4).

    s          evidence of the newest output: success signs .70-1.0, failure signs .08-.18, or none
    class      eval .80, build .70, run .65, install .60, write .58, explore .45, other .50
    score      class and s blended: .60 s for build and run, .45 s for the others; without evidence the class alone
    eval       .15 + .85 s
    done       "task complete": .20 + .75 s within [.20, .95], s of the last 3,000 characters; clean prompt .68; nothing .55
    image .52  looking at a picture     unknown .40  no command at all

Penalties multiply: repetition .10-.25, repetition of what has just failed .05-.20 more, text that gives orders x .85.

What the method leaves open is decided here: a failure sign outweighs success signs, because a log that fails late is full of
successes, and "0 failed" is no failure; where the output begins with "exit code 0", the weaker failure signs do not count,
for a file that is shown may well speak of errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r2v.core.types import Action, Context
from r2v.domains.terminal.commands import CommandClass, command_class
from r2v.verifiers.evidence import INJECTED, WINDOW, gives_orders

CLASS_SCORE: dict[CommandClass, float] = {
    "eval": 0.80, "build": 0.70, "run": 0.65, "install": 0.60, "write": 0.58, "explore": 0.45, "other": 0.50, "image": 0.52,
    "unknown": 0.40,
}  # fmt: skip
TAIL = 3_000
"""Characters of the newest output that a claim to be done is judged by."""
REPEATED = (0.0, 0.10, 0.175, 0.25)
"""Penalty of a command that was used so often in the last steps."""
FAILED_AGAIN = (0.0, 0.05, 0.125, 0.20)
"""And besides, if it is the last one and has failed."""

_SIGNS = {
    0.08: r"traceback \(most recent call last\)|segmentation fault|core dumped|\bpanic:|\bfatal error\b|^killed$",
    0.10: r"command not found|no such file or directory|permission denied|\bsyntax ?error\b|undefined reference|^fatal:",
    0.12: r"\b[1-9]\d* (?:tests? )?(?:failed|failures?|errors?)\b|^(?:FAILED|FAIL|ERROR)\b|make: \*\*\*|\bassertionerror\b",
    0.15: r"\b\w*(?:error|exception)\b|\bfailed\b|\bcannot\b|timed out|\(stopped",
    0.18: r"^exit code [1-9]\d*|^not ok\b",
    0.70: r"^exit code 0\b|\bdone\b|\bcompleted?\b|\bcreated\b|\bsaved\b",
    0.80: r"\bsuccess(?:ful|fully)?\b|\bpassed\b|working tree clean|\bup to date\b|^PASS\b",
    0.90: r"\bbuild succeeded\b|\bsuccessfully (?:built|installed|completed)\b|\bno (?:differences|problems)\b",
    1.00: r"\ball (?:\d+ )?tests? passed\b|\b[1-9]\d* passed\b|^OK$|^ok \d+|100% tests passed",
}
_EVIDENCE = {value: re.compile(sign, re.IGNORECASE | re.MULTILINE) for value, sign in _SIGNS.items()}
FAILURES = (0.08, 0.10, 0.12, 0.15, 0.18)
SURE_FAILURES = (0.08, 0.10, 0.12)
SUCCESSES = (1.00, 0.90, 0.80, 0.70)
_NO_FAILURES = re.compile(r"\b(?:0|no) (?:tests? )?(?:failed|failures?|errors?)\b", re.IGNORECASE)
_CLEAN_PROMPT = re.compile(r"(?:^|\n)[^\n]{0,80}[$#] *$")
_DONE = re.compile(r"\W*(?:submit|task[ _]?completed?|mark_task_complete|finish(?:ed)?)\W*", re.IGNORECASE)


class TerminalVerifier:
    """A `Verifier`. Scores depend on the newest output, the last commands, and the command itself."""

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        done = [action.text for action in context.actions]
        newest = context.observations[-1] if done else ""  # the opening answers no command
        known = {text: score(text, newest, done) for text in {action.text for action in actions}}
        return tuple(known[action.text] for action in actions)


def score(command: str, newest: str, done: Sequence[str]) -> float:
    """Score in [0, 1] of a command after the output `newest` of the last of the commands `done`."""
    s = evidence(newest)
    value = _claim(newest) if _DONE.fullmatch(command) else _blend(command_class(command), s)
    times = min(3, list(done[-WINDOW:]).count(command))
    value *= 1 - REPEATED[times]
    if times and done[-1] == command and s in FAILURES:
        value *= 1 - FAILED_AGAIN[times]
    return value * (INJECTED if gives_orders(newest) or gives_orders(command) else 1.0)


def evidence(output: str) -> float | None:
    """How well an output reflects what was done, in `FAILURES` or `SUCCESSES`; None without either."""
    text = _NO_FAILURES.sub("", output)
    for value in SURE_FAILURES if output.startswith("exit code 0") else FAILURES:
        if _EVIDENCE[value].search(text):
            return value
    return next((value for value in SUCCESSES if _EVIDENCE[value].search(output)), None)


def _blend(kind: CommandClass, s: float | None) -> float:
    base = CLASS_SCORE[kind]
    if s is None or kind in ("image", "unknown"):
        return base
    if kind == "eval":
        return 0.15 + 0.85 * s
    share = 0.60 if kind in ("build", "run") else 0.45
    return share * s + (1 - share) * base


def _claim(newest: str) -> float:
    """What a claim to be done is worth."""
    s = evidence(newest[-TAIL:])
    if s is not None:
        return min(0.95, max(0.20, 0.20 + 0.75 * s))
    return 0.68 if _CLEAN_PROMPT.search(newest[-TAIL:]) else 0.55
