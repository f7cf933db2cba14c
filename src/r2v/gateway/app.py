"""The HTTP surface: authentication, limits, endpoints. Protocols are in `r2v.messages`, the step in `.service`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import math
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from r2v.core.errors import SettingsError
from r2v.gateway.budgets import DAY
from r2v.gateway.candidates import LiveAnswer
from r2v.gateway.ledger import words_of
from r2v.gateway.modes import Unproven
from r2v.gateway.service import Answer, Refused, RequestOptions, Service, in_slices
from r2v.gateway.sessions import Items
from r2v.gateway.settings import Mode
from r2v.maths.stats import wilson
from r2v.messages import BUILT_IN
from r2v.messages.anthropic import MESSAGES
from r2v.messages.conversation import BadRequest, Json, Request, fingerprint
from r2v.messages.json_size import ESCAPES, VALUES, JsonSize
from r2v.messages.openai_chat import CHAT
from r2v.messages.protocol import Piece, ProtocolAdapter, encode, json_object
from r2v.runtime import plugins

SESSION_HEADERS = (
    "x-r2v-session-id", "x-session-id", "x-claude-code-session-id", "x-switchyard-session-id", "session_id", "session-id",
    "thread-id", "conversation_id",
)  # fmt: skip
IDENTITY = re.compile(r"[\w.:@/-]{1,200}")
USER = 2_000
"""Characters of the name of a user in which a session is searched, at its end."""
SESSION_IN_USER = re.compile(r"session_([\w-]{8,100})$")
"""How older versions of Claude Code put the session into the name of the user."""
STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}
Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class Unauthorized(Exception):
    pass


class TooLarge(Exception):
    pass


class ModeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/mode`."""

    action: Literal["promote", "rollback"]
    force: bool = False
    to: Mode = "observe"


def build_app(service: Service) -> Starlette:
    """Raises SettingsError when keys are required and none is set."""
    server = service.settings.server
    keys = [key.strip() for key in os.environ.get(server.key_env, "").split(",") if key.strip()]
    if server.require_key and not keys:
        raise SettingsError(f"set {server.key_env} to the key clients must send, or server.require_key: false")
    return _Gateway(service, keys).app()


class _Gateway:
    def __init__(self, service: Service, keys: Sequence[str]) -> None:
        self.service, self.started = service, time.time()
        self._items = Items()
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    def app(self) -> Starlette:
        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await self.service.close()

        adapters = [plugins.load("protocols", name, BUILT_IN) for name in plugins.names("protocols", BUILT_IN)]
        known: list[tuple[str, Endpoint, str, ProtocolAdapter]] = [
            *((adapter.path, self._served(adapter), "POST", adapter) for adapter in adapters),
            ("/messages/count_tokens", self.count_tokens, "POST", MESSAGES),
            ("/models", self.models, "GET", CHAT),
            ("/models/{model:path}", self.model, "GET", CHAT),
            ("/decision", self.decision, "POST", CHAT),
            ("/outcomes", self.outcomes, "POST", CHAT),
            ("/sessions", self.sessions, "GET", CHAT),
            ("/sessions/{session:path}", self.session, "GET", CHAT),
            ("/stats", self.stats, "GET", CHAT),
            ("/kill", self.kill, "POST", CHAT),
            ("/mode", self.mode, "GET", CHAT),
            ("/mode", self.change_mode, "POST", CHAT),
        ]
        routes = [
            Route(prefix + path, self._guarded(endpoint, adapter), methods=[method])
            for path, endpoint, method, adapter in known
            for prefix in ("/v1", "")
        ]
        # Codex tries a web socket first; this answer makes it take HTTP at once.
        routes += [
            Route(prefix + adapter.path, _no_socket, methods=["GET"]) for adapter in adapters for prefix in ("/v1", "")
        ]
        routes += [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self._guarded(self.metrics, CHAT)),
        ]
        app = Starlette(routes=routes, lifespan=lifespan)
        if origins := self.service.settings.server.cors_origins:
            from starlette.middleware.cors import CORSMiddleware

            app.add_middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["*"],
            )
        return app

    # -- authentication ---------------------------------------------------------------------------------------------

    def _key_of(self, http: HttpRequest) -> str:
        """Hash of the inbound key. Raises Unauthorized."""
        given = http.headers.get("x-api-key") or http.headers.get("authorization", "").removeprefix("Bearer ").strip()
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        matches = [hmac.compare_digest(digest, key) for key in self._keys]  # all of them: the time reveals nothing
        if self.service.settings.server.require_key and not any(matches):
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

    # -- one step -------------------------------------------------------------------------------------------------

    async def _body(self, http: HttpRequest) -> bytes:
        """Raises TooLarge."""
        limit, seen, size = self.service.settings.server.max_body_bytes, bytearray(), JsonSize()
        async for piece in http.stream():
            seen += piece
            size.add(piece)
            if len(seen) > limit:
                raise TooLarge(f"the request is larger than {limit} bytes")
            if size.values > VALUES or size.escapes > ESCAPES:
                raise TooLarge(f"the request holds more than {VALUES} values or {ESCAPES} escaped characters")
        return bytes(seen)

    def _options(self, http: HttpRequest, request: Request, *, dry: bool = False) -> RequestOptions:
        """Overrides by header or by model name: r2v:slm, r2v:teacher, r2v@tau=0.3. Raises BadRequest."""
        model = request.wanted_model
        threshold = _number(model.split("@tau=", 1)[1].split(":")[0], "r2v@tau=0.3") if "@tau=" in model else None
        usd = http.headers.get("x-r2v-budget-usd")
        mode = http.headers.get("x-r2v-mode", "")
        if mode not in ("", "active", "shadow"):
            raise BadRequest("`x-r2v-mode` may be shadow; only the gateway's settings make a step active")
        session = _session_of(http, request)
        return RequestOptions(
            http.state.key, session or fingerprint(request, http.state.key), session is not None,
            self._forced(http, model), threshold, shadow=mode == "shadow",
            session_usd=None if usd is None else max(0.0, _number(usd, "x-r2v-budget-usd: 0.25")), dry=dry,
        )  # fmt: skip

    def _forced(self, http: HttpRequest, model: str) -> str | None:
        """The model that the client insists on: slm, teacher, or None. Raises BadRequest."""
        named = http.headers.get("x-r2v-arm")
        if model.startswith("r2v"):
            named = named or (model.rsplit(":", 1)[1] if ":" in model else None)
        else:
            self._check_accepted(model)
        if named not in (None, "slm", "teacher"):
            raise BadRequest(f"arm {named[:40]!r} is neither slm nor teacher")
        return named

    def _check_accepted(self, model: str) -> None:
        """Raises BadRequest."""
        accepted = self.service.settings.server.accepted_models
        if model not in ("", "auto") and not any(fnmatchcase(model, pattern) for pattern in accepted):
            raise BadRequest(f"model {model[:80]!r} is not served here; ask for r2v, r2v:slm, r2v:teacher or r2v@tau=0.3")

    async def _step(
        self, http: HttpRequest, request: Request, options: RequestOptions, live: LiveAnswer | None = None
    ) -> Answer:
        """The step, cancelled (and with it the calls to the models) when the client disconnects."""
        here = asyncio.current_task()
        assert here is not None
        disconnected = asyncio.ensure_future(_disconnected(http))
        disconnected.add_done_callback(lambda disconnected: None if disconnected.cancelled() else here.cancel())
        try:
            return await self.service.step(request, options, live)
        except asyncio.CancelledError:
            if disconnected.done():
                raise Refused("the client went away", 499, {}) from None
            raise
        finally:
            disconnected.cancel()
            if live is not None:
                live.close()

    def _served(self, adapter: ProtocolAdapter) -> Endpoint:
        """The endpoint of one protocol."""

        async def endpoint(http: HttpRequest) -> Response:
            key = http.state.key
            body, kept = await self._body(http), lambda identity: self._items.get(key, identity)
            request = await in_slices(len(body), lambda: adapter.parse(body, http.headers, kept))
            options = self._options(http, request)
            if request.stream:
                return await self._streamed(http, request, options, adapter)
            answer = await self._step(http, request, options)
            self._items.keep(key, adapter.kept(request, answer.reply, answer.served))
            return json_response(adapter.whole(answer.reply, request, answer.served), 200, answer.facts)

        return endpoint

    async def _streamed(
        self, http: HttpRequest, request: Request, options: RequestOptions, adapter: ProtocolAdapter
    ) -> Response:
        """The answer as events: while its model writes it, or as a whole once it is chosen among others. A decision that
        comes soon is in the headers, too; until a later one comes, pings keep the connection alive.
        """
        live, pause = LiveAnswer(), self.service.settings.server.keep_alive_s
        work = asyncio.ensure_future(self._step(http, request, options, live))
        work.add_done_callback(lambda work: None if work.cancelled() else work.exception())  # the client may have left
        headers, begun = dict(STREAM), None
        try:
            begun = await live.next(pause)
            if begun is None:
                await work
            headers |= headers_of(live.facts)
        except TimeoutError:
            pass
        except BaseException:
            work.cancel()
            raise

        async def events() -> AsyncIterator[bytes]:
            try:
                async for event in self._events(live, begun, work, request, adapter):
                    yield event
                answer = await work
                self._items.keep(options.key, adapter.kept(request, answer.reply, answer.served))
            except Refused as error:
                yield adapter.broken(str(error), error.status, error.facts.get("reason"))
            finally:
                work.cancel()

        return StreamingResponse(events(), 200, headers, "text/event-stream")

    async def _events(
        self, live: LiveAnswer, begun: Piece | None, work: asyncio.Future[Answer], request: Request, adapter: ProtocolAdapter
    ) -> AsyncIterator[bytes]:
        """The events of a step that `work` serves; `begun` is the first piece of its answer, if it has come."""
        piece, encoder, pause = begun, None, self.service.settings.server.keep_alive_s
        while piece is not None or not (work.done() and live.source is None):
            if piece is not None:
                if encoder is None:
                    assert live.source is not None
                    client = live.source.client
                    served = self.service.served(live.facts, client.settings.model)
                    encoder = adapter.encoder(request, served, client.protocol)
                for event in encoder.add(piece):
                    yield event
            try:
                piece = await live.next(pause)
            except TimeoutError:
                yield adapter.ping()
                continue
            if piece is None:
                break
        answer = await work
        if encoder is None:
            last = adapter.held(answer.reply, request, answer.served, answer.facts)
        else:
            last = encoder.end(answer.reply, live.rest, answer.facts)
        for event in last:
            yield event

    async def decision(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        request = await in_slices(len(body), lambda: CHAT.parse(body))
        answer = await self.service.step(request, self._options(http, request, dry=True))
        return json_response({key.replace("-", "_"): value for key, value in answer.facts.items()})

    async def count_tokens(self, http: HttpRequest) -> Response:
        """An estimate, four characters a token: no model is called."""
        body = await self._body(http)
        fields = (await in_slices(len(body), lambda: MESSAGES.parse(body))).fields
        size = sum(len(bytes(fields[key])) for key in ("messages", "tools") if key in fields)
        return json_response({"input_tokens": max(1, size // 4)})

    # -- what is known --------------------------------------------------------------------------------------------

    async def models(self, http: HttpRequest) -> Response:
        entries = [self._entry(name) for name in ("r2v", "r2v:slm", "r2v:teacher")]
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"], "has_more": False}
        return json_response({"object": "list", "data": entries, **ends})

    async def model(self, http: HttpRequest) -> Response:
        name = http.path_params["model"]
        if not name.startswith("r2v"):
            self._check_accepted(name)
        return json_response(self._entry(name))

    def _entry(self, name: str) -> Json:
        """A model as OpenAI and Anthropic list it."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started))
        openai = {"id": name, "object": "model", "created": int(self.started), "owned_by": "r2v"}
        return {**openai, "type": "model", "display_name": name, "created_at": created}

    async def outcomes(self, http: HttpRequest) -> Response:
        raw = json_object(await self._body(http))
        session, reward, t = raw.get("session_id"), raw.get("reward"), raw.get("step")
        session = _scoped(http, session) if isinstance(session, str) else ""
        if not self.service.ledger.has(session):
            raise BadRequest("`session_id` must name a session with at least one step")
        if isinstance(reward, bool):
            reward = float(reward)
        if not isinstance(reward, int | float) or not 0 <= reward <= 1:
            raise BadRequest("`reward` must be a number from 0 to 1")
        if t is not None and (not isinstance(t, int) or isinstance(t, bool) or not 0 <= t < 2**31):
            raise BadRequest("`step` must be the number of a step")
        self.service.ledger.outcome(session, t, float(reward))
        self.service.metrics.outcome()
        return json_response({"ok": True})

    async def sessions(self, http: HttpRequest) -> Response:
        """The latest; `text`, `mode`, `escalated=1` and `failed=1` or `failed=0` leave out others."""
        wanted = http.query_params
        failed = {"1": True, "0": False}.get(wanted.get("failed", ""))
        found = await asyncio.to_thread(
            self.service.ledger.sessions, 100, text=wanted.get("text", ""), mode=wanted.get("mode") or None, failed=failed,
            escalated=wanted.get("escalated") == "1",
        )  # fmt: skip
        return json_response({"sessions": found})

    async def session(self, http: HttpRequest) -> Response:
        identity = http.path_params["session"]
        entries = self.service.ledger.steps(_scoped(http, identity)) or self.service.ledger.steps(identity)
        if not entries:
            return json_response(CHAT.error("no such session", 404), 404)
        steps = [
            {
                "step": e.t, "decision_id": e.id, "time": e.time, "arm": e.source, "reason": e.code, "model": e.model,
                "risk": e.score, "threshold": e.threshold, "propensity": e.propensity, "cost_usd": e.slm_usd + e.teacher_usd,
                "saved_usd": e.saved_usd, "tokens": e.tokens, "candidates": e.candidates,
                "scores": list(e.step.choice.scores), "overhead_ms": e.overhead_ms, "would": e.route,
                "why": e.step.choice.decision.reason if e.step.choice.decision else None,
                "mode": e.mode, "alike": e.alike, "words": words_of(e.step), "verdicts": dict(e.step.verdicts),
            }
            for e in entries
        ]  # fmt: skip
        ledger, name = self.service.ledger, entries[0].session
        outcomes = [{"step": t, "reward": reward, "source": "sent"} for t, reward in ledger.outcomes(name)]
        if (final := ledger.outcome_of(name)) is not None and final[1]:
            outcomes.append({"step": None, "reward": final[0], "source": "verdict", "verdict": final[1]})
        return json_response({"session_id": identity, "goal": entries[0].goal, "steps": steps, "outcomes": outcomes})

    async def stats(self, http: HttpRequest) -> Response:
        service = self.service
        models = {u.name: {"model": u.settings.model, "available": u.available} for u in (service.slm, service.teacher)}
        killed = await service.sessions.killed()
        change = await self.service.modes.current()
        found = {**service.metrics.stats(), "mode": change.mode, "killed": killed, "models": models}
        if days := http.query_params.get("days"):
            since = time.time() - DAY * _number(days, "days=14")
            found["days"] = await asyncio.to_thread(service.ledger.days, since)
            for day in found["days"]:
                day["alike_ci95"] = wilson(day["alike"], day["labelled"])
                day["failed_ci95"] = wilson(day["failed"], day["ended"])
        return json_response(found)

    async def mode(self, http: HttpRequest) -> Response:
        change = await self.service.modes.current()
        enough, reason = await asyncio.to_thread(self.service.modes.evidence, change)
        return json_response({**asdict(change), "next": {"allowed": enough, "reason": reason}})

    async def change_mode(self, http: HttpRequest) -> Response:
        """{"action": "promote", "force": false}, or {"action": "rollback", "to": "observe"}; 409 where nothing allows it."""
        try:
            wanted = msgspec.json.decode(await self._body(http), type=ModeRequest)
        except msgspec.DecodeError as error:
            raise BadRequest(str(error)) from None
        try:
            if wanted.action == "promote":
                await self.service.modes.promote(force=wanted.force)
            else:
                await self.service.modes.rollback(wanted.to)
        except Unproven as error:
            return json_response(CHAT.error(str(error), 409), 409)
        return await self.mode(http)

    async def kill(self, http: HttpRequest) -> Response:
        """The kill switch: {"on": true} gives every step to the SLM."""
        on = json_object(await self._body(http)).get("on")
        if not isinstance(on, bool):
            raise BadRequest("`on` must be true or false")
        await self.service.sessions.kill(on)
        return json_response({"on": on})

    async def health(self, http: HttpRequest) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, http: HttpRequest) -> Response:
        up = {"small": self.service.slm.available, "teacher": self.service.teacher.available}
        return json_response({"ready": any(up.values()), "models": up}, 200 if any(up.values()) else 503)

    async def metrics(self, http: HttpRequest) -> Response:
        text = self.service.metrics.prometheus()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def page(self, http: HttpRequest) -> Response:
        """Holds no data: what it shows it fetches with the key that the reader types in."""
        text = files("r2v.gateway").joinpath("page.html").read_text("utf-8")
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
        )
        return HTMLResponse(text, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})


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


async def _no_socket(http: HttpRequest) -> Response:
    return json_response(CHAT.error("use POST over HTTP", 426), 426)


async def _disconnected(http: HttpRequest) -> None:
    """Ends when the client goes away; its body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _session_of(http: HttpRequest, request: Request) -> str | None:
    """The session the client names, in the places where agents already name theirs."""
    metadata = request.said("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    found: list[Any] = [http.headers.get(name) for name in SESSION_HEADERS]
    found += [metadata.get("session_id"), _session_in(metadata.get("user_id")), request.said("prompt_cache_key")]
    for value in found:
        if isinstance(value, str) and value:
            return _scoped(http, value)
    return None


def _session_in(user: Any) -> str | None:
    """The session in the name of a user, which Claude Code writes there."""
    if not isinstance(user, str):
        return None
    user = user[-USER:]
    try:
        read = json_object(user.encode("utf-8", "replace"))
    except BadRequest:
        match = SESSION_IN_USER.search(user)
        return match[1] if match else None
    return read.get("session_id")


def _scoped(http: HttpRequest, value: str) -> str:
    """The session of this key that goes by this name; one that r2v named itself is scoped already."""
    if not IDENTITY.fullmatch(value):
        value = "h-" + hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:24]
    return value if value.startswith("auto-") else f"{http.state.key}/{value}"


def _number(text: str, example: str) -> float:
    """Raises BadRequest for what is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"{text[:40]!r} is no number; write {example}")
    return value
