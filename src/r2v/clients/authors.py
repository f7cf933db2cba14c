"""Who wrote what only its own model may be sent again: thinking and reasoning. An answer's are signed for its session
(`r2v.gateway.sessions`), by marks that tell them from all others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

from r2v.messages.conversation import Json
from r2v.messages.protocol import Reply

SIGNED = ("signature", "data", "encrypted_content", "reasoning_content", "thinking")
MARKS = 256
"""Of one answer."""


def mark_of(part: Json) -> str | None:
    """Of a thinking block, an item with encrypted reasoning, or a message's `reasoning_content`; None where it has none."""
    text = next((part[key] for key in SIGNED if part.get(key)), None)  # some servers sign no thinking
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32] if isinstance(text, str) else None


def marks_of(reply: Reply) -> Iterator[str]:
    """Of all thinking and reasoning of an answer."""
    message = reply.choice["message"]
    items = (reply.own or {}).get("output") or () if reply.protocol == "responses" else ()
    reasoning = [item for item in items if item.get("type") == "reasoning"]
    words = {"reasoning_content": message.get("reasoning_content")}
    marks = map(mark_of, [*(message.get("thinking_blocks") or ()), *reasoning, words])
    return islice((mark for mark in marks if mark is not None), MARKS)
