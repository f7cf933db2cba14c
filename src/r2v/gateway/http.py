"""Answers over HTTP: JSON with the facts of the step in its headers."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.responses import Response

from r2v.messages.conversation import Json
from r2v.messages.protocol import encode


def json_response(
    content: Json, status: int = 200, facts: Json | None = None, headers: dict[str, str] | None = None
) -> Response:
    return Response(encode(content), status, headers_of(facts or {}) | (headers or {}), "application/json")


def headers_of(facts: Json) -> dict[str, str]:
    """`x-r2v-...` headers of what is known of a step, and the id of the request as each protocol names it."""
    identity = f"req_{facts.get('decision-id') or secrets.token_hex(8)}"
    known = {f"x-r2v-{key}": _header(value) for key, value in facts.items() if value is not None}
    return {"request-id": identity, "x-request-id": identity, **known}


def _header(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if 32 <= ord(c) < 127 else "?" for c in text)
    return text[:300]
