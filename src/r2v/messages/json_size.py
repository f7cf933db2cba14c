"""What a JSON text costs to read, known before it is read: text of a megabyte is quick, a million empty lists are not."""

from __future__ import annotations

from typing import Any

import msgspec

SMALL, HELD = 100_000, 4_000_000
"""Bytes of a text that is read in five milliseconds, whatever it holds; and of one that is counted only where it may have
too many values.
"""
VALUES, ESCAPES, WIDE = 50_000, 1_000_000, 4_000_000
"""What a client's request may hold at most: values, escaped characters, bytes of characters that are not ASCII. Each takes
some 5 ms, in which nobody else is served. A request of 2 MB of an agent has some 20,000 values and 300,000 escapes."""
READ, PIECE = 50_000, 65_536
"""Values of an answer that are decoded at once (in some 8 ms), and bytes of it that are counted at once."""
_ASCII = bytes(range(128))


class TooMuch(ValueError):
    """JSON that holds more than can be read at once."""


def decoded(content: bytes | msgspec.Raw) -> Any:
    """Raises ValueError for what is no JSON or nests too deeply, TooMuch for what holds too much to be read at once."""
    if len(content) > SMALL:
        content, size = bytes(content), JsonSize()
        for i in range(0, len(content), PIECE):
            size.add(content[i : i + PIECE])
        if size.values > READ:
            raise TooMuch(f"{READ} values")
    try:
        return msgspec.json.decode(content)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


class JsonSize:
    """Counts while the text comes in pieces; not before it is more than `SMALL`, and values not before there may be `VALUES`
    of them, for which strings must be parted from what lies between.
    """

    def __init__(self) -> None:
        self.values = self.escapes = self.wide = 0
        """Lists, objects and commas outside of strings, which are no fewer than the values but one; backslashes; bytes of
        characters that are not ASCII."""
        self._unread: list[bytes] = []
        self._seen: list[bytes] = []
        self._length = 0
        self._marks = 0
        """What `values` counts, in strings, too."""
        self._in_string = False
        self._cut = b""
        """A backslash at the end of a piece: what it escapes has not come yet."""

    @property
    def excess(self) -> str:
        """What a client's request has too much of; empty where it may be read."""
        if self.values > VALUES:
            return f"more than {VALUES} values"
        if self.escapes > ESCAPES:
            return f"more than {ESCAPES} escaped characters"
        return f"more than {WIDE} bytes of characters that are not ASCII" if self.wide > WIDE else ""

    def add(self, piece: bytes) -> None:
        self._length += len(piece)
        self._unread.append(piece)
        if self._length <= SMALL:
            return
        for one in self._unread:
            self._look(one)
        self._seen += self._unread
        self._unread = []
        if self._length > HELD or self._marks > VALUES:
            for one in self._seen:
                self._count(one)
            self._seen = []

    def _look(self, piece: bytes) -> None:
        self._marks += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        self.escapes += piece.count(b"\\")
        if not piece.isascii():
            self.wide += len(piece.translate(None, _ASCII))

    def _count(self, piece: bytes) -> None:
        piece, self._cut = self._cut + piece, b""
        if b"\\" in piece:
            if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
                piece, self._cut = piece[:-1], b"\\"
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self.values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        self._in_string ^= len(parts) % 2 == 0
