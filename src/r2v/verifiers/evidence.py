"""Evidence that any verifier may use: repetition, oscillation, answers without effect. Text only."""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 6


def repetition(command: str, commands: Sequence[str]) -> float:
    """1 for a command not used lately, down to 0 for one used three times in the last `WINDOW` steps."""
    return max(0.0, 1.0 - list(commands[-WINDOW:]).count(command) / 3)


def oscillation(command: str, commands: Sequence[str]) -> float:
    """0 where the command continues a pattern A B A B, else 1."""
    if len(commands) < 3:
        return 1.0
    a, b, c = commands[-3:]
    return 0.0 if command == b and a == c and a != b else 1.0
