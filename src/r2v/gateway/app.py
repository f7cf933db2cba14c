"""The HTTP surface: authentication, limits, endpoints. Protocols are in `r2v.messages`, the step in `.service`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import math
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
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
from r2v.gateway.http import headers_of, json_response
from r2v.gateway.ledger import words_of
from r2v.gateway.modes import Modes, Unproven
from r2v.gateway.service import Answer, Refused, RequestOptions, Service
from r2v.gateway.settings import Mode
from r2v.maths.stats import wilson
from r2v.messages import BUILT_IN
from r2v.messages.anthropic import MESSAGES
from r2v.messages.conversation import BadRequest, Json, Request, fingerprint
from r2v.messages.openai_chat import CHAT
from r2v.messages.protocol import ProtocolAdapter, StreamEncoder, json_object
from r2v.runtime import plugins

SESSION_HEADERS = ("x-r2v-session-id", "x-session-id", "x-claude-code-session-id", "x-switchyard-session-id", "session_id")
IDENTITY = re.compile(r"[\w.:@/-]{1,200}")
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
        self.modes = Modes(service.settings.route, service.sessions, service.ledger)
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
        routes += [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self._guarded(self.metrics, CHAT)),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

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
            return json_response(adapter.error(reason, status), status, facts)

        return guarded

    # -- one step -------------------------------------------------------------------------------------------------

    async def _body(self, http: HttpRequest) -> bytes:
        """Raises TooLarge."""
        limit, seen = self.service.settings.server.max_body_bytes, bytearray()
        async for piece in http.stream():
            seen += piece
            if len(seen) > limit:
                raise TooLarge(f"the request is larger than {limit} bytes")
        return bytes(seen)

    def _options(self, http: HttpRequest, request: Request, *, dry: bool = False) -> RequestOptions:
        """Overrides by header or by model name: r2v:slm, r2v:teacher, r2v@tau=0.3. Raises BadRequest."""
        model = request.wanted_model
        threshold = _number(model.split("@tau=", 1)[1].split(":")[0], "r2v@tau=0.3") if "@tau=" in model else None
        usd = http.headers.get("x-r2v-budget-usd")
        mode = http.headers.get("x-r2v-mode", "")
        if mode not in ("", "active", "shadow"):
            raise BadRequest("`x-r2v-mode` may be shadow; only the gateway's settings make a step active")
        return RequestOptions(
            http.state.key, _session_of(http, request.metadata) or fingerprint(request, http.state.key),
            self._forced(http, model), threshold, shadow=mode == "shadow",
            session_usd=None if usd is None else max(0.0, _number(usd, "x-r2v-budget-usd: 0.25")), dry=dry,
        )  # fmt: skip

    def _forced(self, http: HttpRequest, model: str) -> str | None:
        """The model that the client insists on: slm, teacher, or None. Raises BadRequest."""
        served = {settings.model: name for name, settings in self.service.settings.models.items()}
        if not model.startswith("r2v") and model not in ("", "auto") and model not in served:
            raise BadRequest(f"model {model[:80]!r} is not served here; ask for r2v, r2v:slm, r2v:teacher or r2v@tau=0.3")
        named = http.headers.get("x-r2v-arm") or (model.rsplit(":", 1)[1] if ":" in model else None)
        forced = served.get(model, named)
        if forced not in (None, "slm", "teacher"):
            raise BadRequest(f"arm {forced[:40]!r} is neither slm nor teacher")
        return forced

    async def _step(self, http: HttpRequest, request: Request, options: RequestOptions) -> Answer:
        """The step, cancelled (and with it the calls to the models) when the client disconnects."""
        here = asyncio.current_task()
        assert here is not None
        disconnected = asyncio.ensure_future(_disconnected(http))
        disconnected.add_done_callback(lambda disconnected: None if disconnected.cancelled() else here.cancel())
        try:
            return await self.service.step(request, options)
        except asyncio.CancelledError:
            if disconnected.done():
                raise Refused("the client went away", 499, {}) from None
            raise
        finally:
            disconnected.cancel()

    def _served(self, adapter: ProtocolAdapter) -> Endpoint:
        """The endpoint of one protocol."""

        async def endpoint(http: HttpRequest) -> Response:
            request = adapter.parse(await self._body(http))
            options = self._options(http, request)
            if not request.stream:
                answer = await self._step(http, request, options)
                return json_response(adapter.whole(answer.completion, request), 200, answer.facts)
            encoder = adapter.encoder()
            if encoder is not None and await self.service.may_stream_early(options):
                return await self._stream_early(request, options, encoder, adapter)
            return await self._stream_held(http, request, options, adapter)

        return endpoint

    async def _stream_held(
        self, http: HttpRequest, request: Request, options: RequestOptions, adapter: ProtocolAdapter
    ) -> Response:
        """The answer as a stream once it is chosen. A decision that comes soon is in the headers, too; until a later one
        comes, comments keep the connection alive.
        """
        pause = self.service.settings.server.keep_alive_s
        work = asyncio.ensure_future(self._step(http, request, options))
        try:
            done, _ = await asyncio.wait({work}, timeout=pause)
        except asyncio.CancelledError:
            work.cancel()
            raise
        if done:
            answer = work.result()
            headers = {**STREAM, **headers_of(answer.facts)}
            events = adapter.held(answer.completion, request, answer.facts)
            return StreamingResponse(events, 200, headers, "text/event-stream")

        async def later() -> AsyncIterator[bytes]:
            try:
                while not work.done():
                    yield b": r2v is deciding\n\n"
                    await asyncio.wait({work}, timeout=pause)
                answer = work.result()
                for event in adapter.held(answer.completion, request, answer.facts):
                    yield event
            except Refused as error:
                yield _broken(adapter, error)
            finally:
                work.cancel()

        return StreamingResponse(later(), 200, STREAM, "text/event-stream")

    async def _stream_early(
        self, request: Request, options: RequestOptions, encoder: StreamEncoder, adapter: ProtocolAdapter
    ) -> Response:
        """Headers leave with the first chunk, so that a model that is down is still an HTTP error."""
        chunks = self.service.stream_early(request, options)
        first = await anext(chunks)

        async def passed() -> AsyncIterator[bytes]:
            try:
                for event in encoder.add(first):
                    yield event
                async for chunk in chunks:
                    for event in encoder.add(chunk):
                        yield event
            except Refused as error:
                yield _broken(adapter, error)
            finally:
                await chunks.aclose()

        return StreamingResponse(passed(), 200, {**STREAM, "x-r2v-arm": "slm", "x-r2v-reason": "early"}, "text/event-stream")

    async def decision(self, http: HttpRequest) -> Response:
        request = CHAT.parse(await self._body(http))
        answer = await self.service.step(request, self._options(http, request, dry=True))
        return json_response({key.replace("-", "_"): value for key, value in answer.facts.items()})

    async def count_tokens(self, http: HttpRequest) -> Response:
        """An estimate, four characters a token: no model is called."""
        fields = MESSAGES.parse(await self._body(http)).fields
        size = sum(len(bytes(fields[key])) for key in ("messages", "tools") if key in fields)
        return json_response({"input_tokens": max(1, size // 4)})

    # -- what is known --------------------------------------------------------------------------------------------

    async def models(self, http: HttpRequest) -> Response:
        names = ["r2v", "r2v:slm", "r2v:teacher"]
        entries = [{"id": n, "object": "model", "created": int(self.started), "owned_by": "r2v"} for n in names]
        return json_response({"object": "list", "data": entries})

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
        found = self.service.ledger.sessions(
            100, text=wanted.get("text", ""), mode=wanted.get("mode") or None, failed=failed,
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
                "mode": e.mode, "alike": e.alike, "words": words_of(e.step),
            }
            for e in entries
        ]  # fmt: skip
        outcomes = [{"step": t, "reward": reward} for t, reward in self.service.ledger.outcomes(entries[0].session)]
        return json_response({"session_id": identity, "goal": entries[0].goal, "steps": steps, "outcomes": outcomes})

    async def stats(self, http: HttpRequest) -> Response:
        service = self.service
        models = {u.name: {"model": u.settings.model, "available": u.available} for u in (service.slm, service.teacher)}
        killed = await service.sessions.killed()
        change = await self.modes.current()
        found = {**service.metrics.stats(), "mode": change.mode, "killed": killed, "models": models}
        if days := http.query_params.get("days"):
            found["days"] = service.ledger.days(time.time() - DAY * _number(days, "days=14"))
            for day in found["days"]:
                day["alike_ci95"] = wilson(day["alike"], day["labelled"])
                day["failed_ci95"] = wilson(day["failed"], day["ended"])
        return json_response(found)

    async def mode(self, http: HttpRequest) -> Response:
        change = await self.modes.current()
        enough, reason = self.modes.evidence(change)
        return json_response({**asdict(change), "next": {"allowed": enough, "reason": reason}})

    async def change_mode(self, http: HttpRequest) -> Response:
        """{"action": "promote", "force": false}, or {"action": "rollback", "to": "observe"}; 409 where nothing allows it."""
        try:
            wanted = msgspec.json.decode(await self._body(http), type=ModeRequest)
        except msgspec.DecodeError as error:
            raise BadRequest(str(error)) from None
        try:
            if wanted.action == "promote":
                await self.modes.promote(force=wanted.force)
            else:
                await self.modes.rollback(wanted.to)
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


def _broken(adapter: ProtocolAdapter, error: Refused) -> bytes:
    return adapter.broken(str(error), error.status, error.facts.get("reason"))


async def _disconnected(http: HttpRequest) -> None:
    """Ends when the client goes away; its body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _session_of(http: HttpRequest, metadata: Any) -> str | None:
    """The session the client names, in the places where agents already name theirs."""
    found: list[Any] = [http.headers.get(name) for name in SESSION_HEADERS]
    if isinstance(metadata, dict):
        found += [metadata.get("session_id"), metadata.get("user_id")]
    for value in found:
        if isinstance(value, str) and value:
            return _scoped(http, value)
    return None


def _scoped(http: HttpRequest, value: str) -> str:
    """The session of this key that goes by this name; one that r2v named itself is scoped already. Raises BadRequest."""
    if not IDENTITY.fullmatch(value):
        raise BadRequest("a session id is up to 200 letters, digits and . : @ / _ -")
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
