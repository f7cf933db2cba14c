"""Evidence that any verifier may use: repetition, oscillation, injected orders. Text only."""

from __future__ import annotations

import re
from collections.abc import Sequence

WINDOW = 6
INJECTED = 0.85
"""Factor on the score of what is done where a text gives orders (method, section 4)."""
_ORDERS = re.compile(
    r"ignore (?:all |any )?(?:previous|prior|earlier) instructions|disregard (?:the|your|all) |\bnew task:|^system:"
    r"|you must now\b|decode and run\b"
    r"|send (?:the )?(?:contents of )?(?:your|the) (?:notes|keys?|credentials|secrets?|environment)",
    re.IGNORECASE | re.MULTILINE,
)


def gives_orders(text: str) -> bool:
    """Whether a text, which should only inform, looks like an instruction that was injected."""
    return _ORDERS.search(text) is not None


def repetition(command: str, commands: Sequence[str]) -> float:
    """1 for a command not used lately, down to 0 for one used three times in the last `WINDOW` steps."""
    return max(0.0, 1.0 - list(commands[-WINDOW:]).count(command) / 3)


def oscillation(command: str, commands: Sequence[str]) -> float:
    """0 where the command continues a pattern A B A B, else 1."""
    if len(commands) < 3:
        return 1.0
    a, b, c = commands[-3:]
    return 0.0 if command == b and a == c and a != b else 1.0
