"""A cache that is bounded by bytes: what clients and models send is of any length, so a number of entries bounds nothing."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, ParamSpec, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
P = ParamSpec("P")
ENTRY = 500
"""Bytes of an entry besides its key and its value."""


class BoundedCache(Generic[K, V]):
    """Values by key, those used last, of at most so many bytes together. Threads may share it."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self.bytes = most_bytes, 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which then is the one used last; None where it is not kept."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value; the ones unused for longest make room. One that alone fills the cache is not kept.

        Args:
            key: any.
            value: any but None.
            size: bytes of key and value, with what they are made of.
        """
        size += ENTRY
        with self._lock:
            self.bytes -= self._entries.pop(key, (None, 0))[1]
            if size > self._most:
                return
            self._entries[key] = (value, size)
            self.bytes += size
            while self.bytes > self._most:
                self.bytes -= self._entries.popitem(last=False)[1][1]


def remembered(most_bytes: int, size: Callable[P, int]) -> Callable[[Callable[P, V]], Callable[P, V]]:
    """As `functools.lru_cache`, bounded by bytes.

    Args:
        most_bytes: of all arguments and results together.
        size: bytes of the arguments and of what is made of them, from the arguments.
    """

    def decorate(function: Callable[P, V]) -> Callable[P, V]:
        cache: BoundedCache[Hashable, tuple[V]] = BoundedCache(most_bytes)

        @functools.wraps(function)
        def cached(*args: P.args, **kwargs: P.kwargs) -> V:
            key = (args, tuple(kwargs.items()))
            found = cache.get(key)
            if found is None:
                found = (function(*args, **kwargs),)
                cache.put(key, found, size(*args, **kwargs))
            return found[0]

        return cached

    return decorate
