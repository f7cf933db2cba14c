"""What a JSON text costs to read, known before it is read: text of a megabyte is quick, a million empty lists are not."""

from __future__ import annotations

SMALL = 256_000
"""Bytes of a text that is read in ten milliseconds, whatever it holds."""
VALUES, ESCAPES = 100_000, 1_000_000
"""What a client's request may hold at most; either takes some 15 ms, in which nobody else is served."""


class JsonSize:
    """Counts while the text comes in pieces; not before it is more than `SMALL`."""

    def __init__(self) -> None:
        self.values = self.escapes = 0
        """Lists, objects and commas outside of strings, which are no fewer than the values but one; and backslashes."""
        self._first: list[bytes] = []
        self._length = 0
        self._in_string = False
        self._cut = b""
        """A backslash at the end of a piece: what it escapes has not come yet."""

    def add(self, piece: bytes) -> None:
        self._length += len(piece)
        if self._length <= SMALL:
            self._first.append(piece)
            return
        for one in (*self._first, piece):
            self._count(one)
        self._first = []

    def _count(self, piece: bytes) -> None:
        self.escapes += piece.count(b"\\")
        piece, self._cut = self._cut + piece, b""
        if b"\\" in piece:
            if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
                piece, self._cut = piece[:-1], b"\\"
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self.values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        self._in_string ^= len(parts) % 2 == 0
