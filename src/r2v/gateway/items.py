"""What clients may refer to instead of sending it again: items of the Responses protocol, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from r2v.messages.conversation import Json
from r2v.messages.protocol import encode

MOST_BYTES = 64_000_000
"""Of all items together; the oldest are forgotten first."""


class Items:
    """Lists of items by id, for each key of a client: no client can refer to another's."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._lists: OrderedDict[tuple[str, str], tuple[list[Json], int]] = OrderedDict()
        self._bytes = 0

    def keep(self, key: str, lists: Mapping[str, list[Json]]) -> None:
        for identity, items in lists.items():
            size = len(encode(items))
            self._forget((key, identity))
            self._lists[key, identity] = (items, size)
            self._bytes += size
        while self._bytes > self._most:
            self._forget(next(iter(self._lists)))

    def get(self, key: str, identity: str) -> list[Json] | None:
        found = self._lists.get((key, identity))
        return None if found is None else found[0]

    def _forget(self, name: tuple[str, str]) -> None:
        if name in self._lists:
            self._bytes -= self._lists.pop(name)[1]
