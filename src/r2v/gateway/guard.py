"""What both planes of the gateway do with an HTTP request: keys, limits, errors, names of sessions."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from r2v.gateway.body_memory import BodyMemory, BodyMemoryFull
from r2v.gateway.keys import OPEN, Key, KeyRing, Scope
from r2v.gateway.settings import ServerSettings
from r2v.gateway.step import RETRY_S, Refused, unreachable
from r2v.messages.conversation import BadRequest, Json
from r2v.messages.json_size import JsonSize
from r2v.messages.protocol import ProtocolAdapter, encode
from r2v.runtime.settings import LIKE_A_KEY

IDENTITY = re.compile(r"[\w.:/-]{1,200}", re.ASCII)
"""Of a session: no address of a person, for one."""
SECRET = re.compile(rf"{LIKE_A_KEY.pattern}|://")
"""What looks like a key of somebody's, in the place of a session's name."""
CODES = {"prompt_too_long": "context_length_exceeded"}
"""Reasons for which OpenAI has a code that its clients look for."""
SHORT = 65_536
"""Bytes of the body of whatever is no step."""
Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class Unauthorized(Exception):
    pass


class Forbidden(Exception):
    """The key may not do this."""


class TooLarge(Exception):
    pass


class Guard:
    """Keys and limits of what is asked over HTTP: of both planes."""

    def __init__(self, server: ServerSettings, keys: KeyRing) -> None:
        self.server, self.keys = server, keys

    # -- authentication ---------------------------------------------------------------------------------------------

    async def _key_of(self, http: HttpRequest) -> Key:
        """Whose request it is. Raises Unauthorized, Forbidden, Refused."""
        kind, _, token = http.headers.get("authorization", "").partition(" ")
        given = http.headers.get("x-api-key") or (token.strip() if kind.lower() == "bearer" else kind)
        try:
            key = await self.keys.find(given)
        except (OSError, sqlite3.Error) as error:
            raise unreachable(error, {}) from None
        if key is None:
            raise Unauthorized
        if key is OPEN and not self._is_meant(http):
            raise Forbidden("this gateway asks for no key, so it answers only what is sent from this machine to it by name")
        return key

    def _is_meant(self, http: HttpRequest) -> bool:
        """Whether neither a page of another site nor a name that was bent to this machine sent it here."""
        host, origin = http.headers.get("host", ""), http.headers.get("origin")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        named = {*self.server.allowed_hosts, self.server.host}
        return name in named and (origin in (None, f"http://{host}", f"https://{host}", *self.server.cors_origins))

    def _guarded(self, endpoint: Endpoint, adapter: ProtocolAdapter, scope: Scope) -> Endpoint:
        async def guarded(http: HttpRequest) -> Response:
            facts: Json = {}
            headers = {}
            try:
                key = http.state.key = await self._key_of(http)
                if not key.may(scope):
                    raise Forbidden(f"this key is not for that: it takes the scope {scope}")
                return await endpoint(http)
            except Unauthorized:
                reason, status = "the key is missing or wrong", 401
            except Forbidden as error:
                reason, status = str(error), 403
            except BadRequest as error:
                reason, status = str(error), 400
            except TooLarge as error:
                reason, status = str(error), 413
            except BodyMemoryFull as error:
                reason, status, headers["retry-after"] = str(error), 503, str(math.ceil(RETRY_S))
            except ClientDisconnect:
                reason, status = "the client went away", 499
            except Refused as error:
                reason, status, facts = str(error), error.status, dict(error.facts)
                if error.retry_after is not None:
                    headers["retry-after"] = str(math.ceil(error.retry_after))
            return json_response(adapter.error(reason, status, CODES.get(str(facts.get("reason")))), status, facts, headers)

        return guarded

    def routes(self, known: Sequence[tuple[str, Endpoint, str, ProtocolAdapter, Scope]]) -> list[Route]:
        """Guarded routes of (path, endpoint, method, whose errors are answered, scope), with and without /v1."""
        return [
            Route(prefix + path, self._guarded(endpoint, adapter, scope), methods=[method])
            for path, endpoint, method, adapter, scope in known
            for prefix in ("/v1", "")
        ]

    async def _body(self, http: HttpRequest, most: int | None = None, room: BodyMemory | None = None) -> bytes:
        """A request's body.

        Args:
            http: the request.
            most: bytes that it may have; None: what the settings allow.
            room: in which it takes its place.

        Raises:
            TooLarge: it is larger, or would take long to read.
            BodyMemoryFull: before it is read, where its length is known.
        """
        limit, pieces, length, size = most or self.server.max_body_bytes, [], 0, JsonSize()
        given = http.headers.get("content-length", "")
        taken = int(given) if given.isdecimal() else 0
        if taken > limit:
            raise self._too_large(limit)
        if room is not None:
            room.take(http.scope, http.state.key.id, taken)
        async for piece in http.stream():
            pieces.append(piece)
            size.add(piece)
            length += len(piece)
            if length > limit:
                raise self._too_large(limit)
            if room is not None and length > taken:
                room.take(http.scope, http.state.key.id, length - taken)
                taken = length
            if size.excess:
                raise TooLarge(f"the request holds {size.excess}")
        return b"".join(pieces)

    def _too_large(self, limit: int) -> TooLarge:
        where = " (server.max_body_bytes)" if limit == self.server.max_body_bytes else ""
        return TooLarge(f"the request is larger than {limit} bytes{where}")


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
    """The session of this tenant that goes by this name."""
    tenant = http.state.key.tenant
    if value.startswith(f"{tenant}/"):
        value = value.removeprefix(f"{tenant}/")
    return f"{tenant}/{short_name(value)}"


def short_name(value: str) -> str:
    """What a client calls a session, hashed where it might say more than a name should."""
    if not IDENTITY.fullmatch(value) or SECRET.search(value):
        return "h-" + hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:24]
    return value


def number(text: str, example: str) -> float:
    """Raises BadRequest for what is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"{text[:40]!r} is no number; write {example}")
    return value
