"""What both planes of the gateway do with an HTTP request: keys, limits, errors, names of sessions."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from r2v.core.errors import SettingsError
from r2v.gateway.service import Refused
from r2v.gateway.settings import ServerSettings
from r2v.messages.conversation import BadRequest, Json
from r2v.messages.protocol import ProtocolAdapter, encode

IDENTITY = re.compile(r"[\w.:@/-]{1,200}")
Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class Unauthorized(Exception):
    pass


class TooLarge(Exception):
    pass


def inbound_keys(server: ServerSettings) -> list[str]:
    """The keys that clients may send. Raises SettingsError when keys are required and none is set."""
    keys = [key.strip() for key in os.environ.get(server.key_env, "").split(",") if key.strip()]
    if server.require_key and not keys:
        raise SettingsError(f"set {server.key_env} to the key clients must send, or server.require_key: false")
    return keys


class Guard:
    """Keys and limits of what is asked over HTTP: of both planes."""

    def __init__(self, server: ServerSettings, keys: Sequence[str]) -> None:
        self.server = server
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    # -- authentication ---------------------------------------------------------------------------------------------

    def _key_of(self, http: HttpRequest) -> str:
        """Hash of the inbound key. Raises Unauthorized."""
        given = http.headers.get("x-api-key") or http.headers.get("authorization", "").removeprefix("Bearer ").strip()
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        matches = [hmac.compare_digest(digest, key) for key in self._keys]  # all of them: the time reveals nothing
        if self.server.require_key and not any(matches):
            raise Unauthorized
        return digest.hex()[:12] if any(matches) else "open"

    def _guarded(self, endpoint: Endpoint, adapter: ProtocolAdapter) -> Endpoint:
        async def guarded(http: HttpRequest) -> Response:
            facts: Json = {}
            headers = {}
            try:
                http.state.key = self._key_of(http)
                return await endpoint(http)
            except Unauthorized:
                reason, status = "the key is missing or wrong", 401
            except BadRequest as error:
                reason, status = str(error), 400
            except TooLarge as error:
                reason, status = str(error), 413
            except ClientDisconnect:
                reason, status = "the client went away", 499
            except Refused as error:
                reason, status, facts = str(error), error.status, dict(error.facts)
                if error.retry_after is not None:
                    headers["retry-after"] = str(math.ceil(error.retry_after))
            return json_response(adapter.error(reason, status), status, facts, headers)

        return guarded

    def routes(self, known: Sequence[tuple[str, Endpoint, str, ProtocolAdapter]]) -> list[Route]:
        """Guarded routes of (path, endpoint, method, whose errors are answered), with and without /v1."""
        return [
            Route(prefix + path, self._guarded(endpoint, adapter), methods=[method])
            for path, endpoint, method, adapter in known
            for prefix in ("/v1", "")
        ]

    async def _body(self, http: HttpRequest) -> bytes:
        """Raises TooLarge."""
        limit, seen = self.server.max_body_bytes, bytearray()
        async for piece in http.stream():
            seen += piece
            if len(seen) > limit:
                raise TooLarge(f"the request is larger than {limit} bytes")
        return bytes(seen)


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


def scoped(http: HttpRequest, value: str) -> str:
    """The session of this key that goes by this name; one that r2v named itself is scoped already."""
    if not IDENTITY.fullmatch(value):
        value = "h-" + hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:24]
    return value if value.startswith("auto-") else f"{http.state.key}/{value}"


def number(text: str, example: str) -> float:
    """Raises BadRequest for what is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"{text[:40]!r} is no number; write {example}")
    return value
