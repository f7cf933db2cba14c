"""A key/value cache with one row an episode, each row with its own length; nothing moves when a row grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

GROW = 128


class SlotCache(Cache):  # type: ignore[misc]
    """Preallocated keys and values per layer, [rows, heads, positions, width].

    Before each forward `aim` sets to which rows and positions the new keys go; `update` then writes them there and hands
    the model everything up to the highest position. What a query may see is the caller's mask.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self._rows: Tensor | None = None
        self._positions = torch.empty(0, dtype=torch.long)
        self._view_rows: Tensor | None = None
        self._width = 0

    def aim(self, rows: Tensor, positions: Tensor, width: int, *, subset: bool) -> None:
        """Row index [R], positions [R, Q] of the next keys; `width` positions are read back.

        `subset`: read back these rows only (a copy); else rows 0..R-1 must be the rows (a view).
        """
        self._rows, self._positions, self._width = rows, positions, width
        self._view_rows = rows if subset else None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self._rows is not None
        rows = int(self._rows.max()) + 1
        keys = self._room(self.keys, layer_idx, key_states, rows, self._width)
        values = self._room(self.values, layer_idx, value_states, rows, self._width)
        at = (self._rows[:, None], slice(None), self._positions)
        keys[at] = key_states.transpose(1, 2)
        values[at] = value_states.transpose(1, 2)
        if self._view_rows is None:
            return keys[:rows, :, : self._width], values[:rows, :, : self._width]
        return keys[self._view_rows, :, : self._width], values[self._view_rows, :, : self._width]

    def copy(self, pieces: Sequence[tuple[int, int, int]]) -> None:
        """For each (source row, length, target row): the target begins as the source does."""
        if not pieces:
            return
        sources, lengths, targets = (torch.tensor(column) for column in zip(*pieces, strict=True))
        span = int(lengths.max())
        for store in (self.keys, self.values):
            for layer, held in enumerate(store):
                assert held is not None
                room = self._room(store, layer, held, int(targets.max()) + 1, span)
                room[targets, :, :span] = room[sources, :, :span]

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was; the others are dropped."""
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                if old is not None:
                    store[layer] = old[rows].contiguous()

    def _room(self, store: list[Tensor | None], layer: int, like: Tensor, rows: int, positions: int) -> Tensor:
        """The layer's store, grown to hold so many rows and positions (rows by a quarter more, so that it grows seldom)."""
        old = store[layer]
        if old is not None and old.shape[0] >= rows and old.shape[2] >= positions:
            return old
        held_rows, held_positions = (0, 0) if old is None else (old.shape[0], old.shape[2])
        new = like.new_zeros(
            held_rows if rows <= held_rows else max(rows, held_rows + held_rows // 4),
            like.shape[1],
            max(-(-positions // GROW) * GROW, held_positions),
            like.shape[3],
        )
        if old is not None:
            new[:held_rows, :, :held_positions] = old
        store[layer] = new
        return new
