"""The HTTP surface: who may ask, which protocol it speaks, what is streamed; the step itself is `r2v.gateway.service`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from r2v.errors import SettingsError
from r2v.gateway import anthropic, chat, responses
from r2v.gateway.chat import BadRequest, Json
from r2v.gateway.service import Answer, Refused, Service, Wish

SESSION_HEADERS = ("x-r2v-session-id", "x-session-id", "x-claude-code-session-id", "x-switchyard-session-id", "session_id")
IDENTITY = re.compile(r"[\w.:@/-]{1,200}")
STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Unauthorized(Exception):
    pass


def build_app(service: Service) -> Starlette:
    """Raises SettingsError when keys are required and none is set."""
    server = service.settings.server
    keys = [key.strip() for key in os.environ.get(server.key_env, "").split(",") if key.strip()]
    if server.require_key and not keys:
        raise SettingsError(f"set {server.key_env} to the key clients must send, or server.require_key: false")
    return _Gateway(service, keys).app()


class TooLarge(Exception):
    pass


def chat_error(message: str, kind: str, code: str | None) -> Json:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class _Gateway:
    def __init__(self, service: Service, keys: Sequence[str]) -> None:
        self.service, self.started = service, time.time()
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    def app(self) -> Starlette:
        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await self.service.close()

        both: list[tuple[str, Callable[[HttpRequest], Awaitable[Response]], str]] = [
            ("/chat/completions", self.chat_completions, "POST"),
            ("/messages", self.messages, "POST"),
            ("/messages/count_tokens", self.count_tokens, "POST"),
            ("/responses", self.responses, "POST"),
            ("/models", self.models, "GET"),
            ("/decision", self.decision, "POST"),
            ("/outcomes", self.outcomes, "POST"),
            ("/sessions", self.sessions, "GET"),
            ("/sessions/{session:path}", self.session, "GET"),
            ("/stats", self.stats, "GET"),
            ("/kill", self.kill, "POST"),
        ]
        routes = [
            Route(prefix + path, self._guarded(endpoint), methods=[method])
            for path, endpoint, method in both
            for prefix in ("/v1", "")
        ]
        routes += [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self._guarded(self.metrics)),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    # -- who may ask ----------------------------------------------------------------------------------------------

    def _key_of(self, http: HttpRequest) -> str:
        """Hash of the inbound key. Raises Unauthorized."""
        given = http.headers.get("x-api-key") or http.headers.get("authorization", "").removeprefix("Bearer ").strip()
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        matches = [hmac.compare_digest(digest, key) for key in self._keys]  # all of them: time tells nothing
        if self.service.settings.server.require_key and not any(matches):
            raise Unauthorized
        return digest.hex()[:12] if any(matches) else "open"

    def _guarded(
        self, endpoint: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def guarded(http: HttpRequest) -> Response:
            path = http.url.path
            speak = anthropic_error if "/messages" in path else openai_error
            try:
                http.state.key = self._key_of(http)
                return await endpoint(http)
            except Unauthorized:
                return speak("the key is missing or wrong", 401, {})
            except BadRequest as error:
                return speak(str(error), 400, {})
            except TooLarge as error:
                return speak(str(error), 413, {})
            except Refused as error:
                return speak(str(error), error.status, error.facts)

        return guarded

    # -- one step -------------------------------------------------------------------------------------------------

    async def _body(self, http: HttpRequest) -> Json:
        limit, seen = self.service.settings.server.max_body_bytes, bytearray()
        async for piece in http.stream():
            seen += piece
            if len(seen) > limit:
                raise TooLarge(f"the request is larger than {limit} bytes")
        try:
            raw = json.loads(bytes(seen))
        except (ValueError, RecursionError):
            raise BadRequest("the body is not JSON") from None
        if not isinstance(raw, dict):
            raise BadRequest("the body must be a JSON object")
        return raw

    def _wish(self, http: HttpRequest, raw: Json, request: chat.Request, *, dry: bool = False) -> Wish:
        """Overrides by header or by model name: r2v:slm, r2v:teacher, r2v@tau=0.3."""
        model = request.wanted_model
        if not model.startswith("r2v") and model not in ("", "auto"):
            known = {m.model for m in self.service.settings.models.values()}
            if model not in known:
                raise BadRequest(
                    f"model {model[:80]!r} is not served here; ask for r2v, r2v:slm, r2v:teacher or r2v@tau=0.3"
                )
        arm = http.headers.get("x-r2v-arm") or (model.rsplit(":", 1)[1] if ":" in model else None)
        for name, settings in self.service.settings.models.items():
            if model == settings.model:
                arm = "slm" if name == "small" else "teacher"
        if arm not in (None, "slm", "teacher"):
            raise BadRequest(f"arm {arm[:40]!r} is neither slm nor teacher")
        threshold = None
        if "@tau=" in model:
            try:
                threshold = float(model.split("@tau=", 1)[1].split(":")[0])
            except ValueError:
                raise BadRequest("write the threshold as r2v@tau=0.3") from None
            if not math.isfinite(threshold):
                raise BadRequest("the threshold must be a finite number")
        session = _session_of(http, raw) or chat.fingerprint(request, http.state.key)
        return Wish(http.state.key, session, arm, threshold, dry)

    async def _step(self, http: HttpRequest, request: chat.Request, wish: Wish) -> Answer:
        """The step, given up (and with it what was asked of the models) when the client goes away."""
        work = asyncio.ensure_future(self.service.step(request, wish))
        gone = asyncio.ensure_future(_disconnected(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError, Refused):
                    await work
                raise Refused("the client went away", 499, {})
            answer = work.result()
            self.service.remember_thinking(answer)
            return answer
        finally:
            gone.cancel()
            work.cancel()

    async def chat_completions(self, http: HttpRequest) -> Response:
        raw = await self._body(http)
        request = chat.parse(raw)
        wish = self._wish(http, raw, request)
        if not request.stream:
            answer = await self._step(http, request, wish)
            return JSONResponse(answer.completion, headers=headers_of(answer.facts))
        if self.service.may_stream_early(wish):
            return await self._stream_early(request, wish)
        options = raw.get("stream_options")
        usage = bool(isinstance(options, dict) and options.get("include_usage"))

        def told(answer: Answer) -> Iterator[str]:
            for chunk in chat.chunks(answer.completion, usage, answer.facts):
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"

        def failed(error: Refused) -> str:
            body = chat_error(str(error), "r2v_error", str(error.facts.get("reason")))
            return f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n"

        return await self._stream(http, request, wish, told, failed)

    async def messages(self, http: HttpRequest) -> Response:
        raw = await self._body(http)
        request = _parsed(anthropic.from_messages, raw)
        wish = self._wish(http, raw, request)
        if not request.stream:
            answer = await self._step(http, request, wish)
            return JSONResponse(anthropic.message_of(answer.completion), headers=headers_of(answer.facts))

        def told(answer: Answer) -> Iterator[str]:
            for name, event in anthropic.events(anthropic.message_of(answer.completion), answer.facts):
                yield f"event: {name}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"

        def failed(error: Refused) -> str:
            return f"event: error\ndata: {json.dumps(anthropic.error_of('api_error', str(error)))}\n\n"

        return await self._stream(http, request, wish, told, failed)

    async def responses(self, http: HttpRequest) -> Response:
        raw = await self._body(http)
        request = _parsed(responses.from_responses, raw)
        wish = self._wish(http, raw, request)
        if not request.stream:
            answer = await self._step(http, request, wish)
            return JSONResponse(responses.response_of(answer.completion, raw), headers=headers_of(answer.facts))

        def told(answer: Answer) -> Iterator[str]:
            for event in responses.events(responses.response_of(answer.completion, raw), answer.facts):
                yield f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"

        def failed(error: Refused) -> str:
            event = {"type": "error", "message": str(error), "code": error.facts.get("reason"), "sequence_number": 0}
            return f"event: error\ndata: {json.dumps(event)}\n\n"

        return await self._stream(http, request, wish, told, failed)

    async def _stream(
        self,
        http: HttpRequest,
        request: chat.Request,
        wish: Wish,
        told: Callable[[Answer], Iterator[str]],
        failed: Callable[[Refused], str],
    ) -> Response:
        """`hold`: the draft that was chosen is told when it is chosen. A decision that comes soon is in the headers, too;
        until a later one comes, comments keep the connection alive.
        """
        pause = self.service.settings.server.keep_alive_s
        work = asyncio.ensure_future(self._step(http, request, wish))
        try:
            done, _ = await asyncio.wait({work}, timeout=pause)
        except asyncio.CancelledError:
            work.cancel()
            raise
        if done:
            answer = work.result()
            return StreamingResponse(told(answer), 200, {**STREAM, **headers_of(answer.facts)}, "text/event-stream")

        async def later() -> AsyncIterator[str]:
            try:
                while not work.done():
                    yield ": r2v is deciding\n\n"
                    await asyncio.wait({work}, timeout=pause)
                for text in told(work.result()):
                    yield text
            except Refused as error:
                yield failed(error)
            finally:
                work.cancel()

        return StreamingResponse(later(), 200, STREAM, "text/event-stream")

    async def _stream_early(self, request: chat.Request, wish: Wish) -> Response:
        """Headers leave with the first chunk, so that a model that is down is still an HTTP error."""
        chunks = self.service.stream_early(request, wish)
        first = await anext(chunks)

        async def passed() -> AsyncIterator[str]:
            try:
                yield f"data: {json.dumps(first, ensure_ascii=False)}\n\n"
                async for chunk in chunks:
                    yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            except Refused as error:
                yield f"data: {json.dumps(chat_error(str(error), 'r2v_error', str(error.facts.get('reason'))))}\n\n"
            finally:
                await chunks.aclose()
            yield "data: [DONE]\n\n"

        return StreamingResponse(passed(), 200, {**STREAM, "x-r2v-arm": "slm", "x-r2v-reason": "early"}, "text/event-stream")

    async def decision(self, http: HttpRequest) -> Response:
        raw = await self._body(http)
        request = chat.parse(raw)
        answer = await self.service.step(request, self._wish(http, raw, request, dry=True))
        return JSONResponse({key.replace("-", "_"): value for key, value in answer.facts.items()})

    async def count_tokens(self, http: HttpRequest) -> Response:
        """An estimate, four characters a token: no model is asked."""
        body = _parsed(anthropic.from_messages, await self._body(http)).body
        return JSONResponse({"input_tokens": max(1, len(json.dumps([body["messages"], body.get("tools")])) // 4)})

    # -- what is known --------------------------------------------------------------------------------------------

    async def models(self, http: HttpRequest) -> Response:
        names = ["r2v", "r2v:slm", "r2v:teacher"]
        entries = [{"id": n, "object": "model", "created": int(self.started), "owned_by": "r2v"} for n in names]
        return JSONResponse({"object": "list", "data": entries})

    async def outcomes(self, http: HttpRequest) -> Response:
        raw = await self._body(http)
        session, reward, t = raw.get("session_id"), raw.get("reward"), raw.get("step")
        session = _scoped(http, session) if isinstance(session, str) else ""
        if not self.service.ledger.steps(session):
            raise BadRequest("`session_id` must name a session with at least one step")
        if isinstance(reward, bool):
            reward = float(reward)
        if not isinstance(reward, int | float) or not 0 <= reward <= 1:
            raise BadRequest("`reward` must be a number from 0 to 1")
        if t is not None and (not isinstance(t, int) or isinstance(t, bool) or t < 0):
            raise BadRequest("`step` must be the number of a step")
        self.service.ledger.outcome(session, t, float(reward))
        return JSONResponse({"ok": True})

    async def sessions(self, http: HttpRequest) -> Response:
        return JSONResponse({"sessions": self.service.ledger.sessions(100)})

    async def session(self, http: HttpRequest) -> Response:
        identity = http.path_params["session"]
        entries = self.service.ledger.steps(_scoped(http, identity)) or self.service.ledger.steps(identity)
        if not entries:
            return openai_error("no such session", 404, {})
        steps = [
            {
                "step": e.t, "decision_id": e.id, "time": e.time, "arm": e.arm, "reason": e.reason, "model": e.model,
                "risk": e.risk, "threshold": e.threshold, "propensity": e.propensity, "cost_usd": e.slm_usd + e.teacher_usd,
                "candidates": e.candidates, "scores": list(e.step.choice.scores), "overhead_ms": e.overhead_ms,
                "would": e.would,
                "why": e.step.choice.decision.reason if e.step.choice.decision else None,
            }
            for e in entries
        ]  # fmt: skip
        outcomes = [{"step": t, "reward": reward} for t, reward in self.service.ledger.outcomes(entries[0].session)]
        return JSONResponse({"session_id": identity, "goal": entries[0].goal, "steps": steps, "outcomes": outcomes})

    async def stats(self, http: HttpRequest) -> Response:
        return JSONResponse(self.service.stats())

    async def kill(self, http: HttpRequest) -> Response:
        """The kill switch: {"on": true} gives every step to the small model."""
        on = (await self._body(http)).get("on")
        if not isinstance(on, bool):
            raise BadRequest("`on` must be true or false")
        self.service.killed = on
        return JSONResponse({"on": on})

    async def health(self, http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, http: HttpRequest) -> Response:
        up = {"small": self.service.small.available, "teacher": self.service.teacher.available}
        return JSONResponse({"ready": any(up.values()), "models": up}, 200 if any(up.values()) else 503)

    async def metrics(self, http: HttpRequest) -> Response:
        return PlainTextResponse(self.service.metrics(), media_type="text/plain; version=0.0.4")

    async def page(self, http: HttpRequest) -> Response:
        """Holds no data: what it shows it fetches with the key that the reader types in."""
        text = files("r2v.gateway").joinpath("page.html").read_text("utf-8")
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
        )
        return HTMLResponse(text, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})


def _parsed(convert: Callable[[Json], Json], raw: Json) -> chat.Request:
    """A request of another protocol. Raises BadRequest, also where a part has a type that the conversion cannot use."""
    try:
        return chat.parse(convert(raw))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadRequest(f"the request holds a part of the wrong type ({type(error).__name__}: {error})"[:200]) from None


async def _disconnected(http: HttpRequest) -> None:
    """Ends when the client goes away; its body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _session_of(http: HttpRequest, raw: Json) -> str | None:
    """The session the client names, in the places where agents already name theirs."""
    found: list[Any] = [http.headers.get(name) for name in SESSION_HEADERS]
    if isinstance(metadata := raw.get("metadata"), dict):
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


def headers_of(facts: Json) -> dict[str, str]:
    return {f"x-r2v-{key}": _header(value) for key, value in facts.items() if value is not None}


def _header(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in text)[:300]


def openai_error(message: str, status: int, facts: Any) -> Response:
    kind = {401: "authentication_error", 400: "invalid_request_error", 402: "budget_error"}.get(status, "r2v_error")
    return JSONResponse(chat_error(message, kind, str(facts.get("reason", ""))), status, headers_of(dict(facts)))


def anthropic_error(message: str, status: int, facts: Any) -> Response:
    kind = {401: "authentication_error", 400: "invalid_request_error"}.get(status, "api_error")
    return JSONResponse(anthropic.error_of(kind, message), status, headers_of(dict(facts)))
