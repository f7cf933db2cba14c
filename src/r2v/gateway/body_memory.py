"""What the bodies of all requests that are being served may take of memory together."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter

from starlette.types import Scope

HELD = "r2v_held"
"""Where a request keeps what it has taken: (key, bytes)."""
OTHERS = 8
"""One part in so many is kept free for keys other than the one that has taken the rest."""
FULL_S, LOGGED_S = 5.0, 10.0
"""Seconds after a refusal until the room no longer counts as full, and between two lines in the log."""


class BodyMemoryFull(Exception):
    """The body does not fit beside those of the requests that are being served."""


class BodyMemory:
    """Counts the bytes of one process's requests."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes, self.refused = most, 0, 0
        self._of_key: Counter[str] = Counter()
        self._refused_at = self._logged_at = -math.inf

    @property
    def full(self) -> bool:
        """Whether a body was refused a moment ago that had no room beside all others."""
        return time.monotonic() - self._refused_at < FULL_S

    def take(self, scope: Scope, key: str, size: int) -> None:
        """Take so many further bytes for the request of this scope, until it has been answered. Raises BodyMemoryFull."""
        full = self.bytes + size > self.most
        if full or self._of_key[key] + size > self.most - self.most // OTHERS:
            self._refuse(full)
        self.bytes += size
        self._of_key[key] += size
        state = scope.setdefault("state", {})
        state[HELD] = (key, size + state.get(HELD, (key, 0))[1])

    def _refuse(self, full: bool) -> None:
        """Raises BodyMemoryFull. `full`: not because of one key alone."""
        self.refused += 1
        now = time.monotonic()
        if full:
            self._refused_at = now
        if now - self._logged_at > LOGGED_S:
            self._logged_at = now
            logging.getLogger("uvicorn.error").warning(
                "requests are refused (503): the bodies of those being served have %d bytes of server.max_bodies_bytes (%d)",
                self.bytes, self.most,
            )  # fmt: skip
        raise BodyMemoryFull(
            "the requests that are being served leave no room for this one (server.max_bodies_bytes); try again"
        )

    def give_back(self, scope: Scope) -> None:
        """What the request of this scope has taken."""
        key, size = scope.get("state", {}).pop(HELD, ("", 0))
        self.bytes -= size
        self._of_key[key] -= size
        if not self._of_key[key]:
            del self._of_key[key]
