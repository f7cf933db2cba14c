"""The data plane over HTTP: authentication, limits, what agents ask. Protocols are in `r2v.messages`, the step is in
`.service`, what operators ask in `.control`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import anyio._backends._asyncio  # noqa: F401  (which Starlette loads at the first stream, while others wait)
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Lifespan, Receive, Send
from starlette.types import Scope as ASGIScope

from r2v.gateway.body_memory import BodyMemory
from r2v.gateway.candidates import LiveAnswer
from r2v.gateway.control import PLAIN, ROUTES, ControlPlane
from r2v.gateway.guard import CODES, SHORT, Endpoint, Forbidden, Guard, headers_of, json_response, number, scoped, short_name
from r2v.gateway.keys import Scope
from r2v.gateway.metrics import sum_counts
from r2v.gateway.reload import Generation, LiveApp, Read, Reloading
from r2v.gateway.service import Service
from r2v.gateway.sessions import Items
from r2v.gateway.settings import GatewaySettings
from r2v.gateway.step import Refused, RequestOptions, StepAnswer
from r2v.messages import BUILT_IN
from r2v.messages.anthropic import MESSAGES
from r2v.messages.conversation import BadRequest, Json, Request, fingerprint
from r2v.messages.openai_chat import CHAT
from r2v.messages.protocol import Piece, ProtocolAdapter, References, json_object
from r2v.runtime import plugins
from r2v.runtime.slices import in_slices
from r2v.verifiers import verifier_named

SESSION_HEADERS = (
    "x-r2v-session-id", "x-session-id", "x-claude-code-session-id", "x-switchyard-session-id", "session_id", "session-id",
    "thread-id", "conversation_id",
)  # fmt: skip
USER = 2_000
"""Characters of the name of a user in which a session is searched, at its end."""
SESSION_IN_USER = re.compile(r"session_([\w-]{8,100})$")
"""How older versions of Claude Code put the session into the name of the user."""
SUBAGENT_HEADER = "x-claude-code-agent-id"
"""Of a subagent, which goes by the session of the agent that has sent it."""
ID = re.compile(r"[0-9A-Fa-f]{16}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}|_[0-9A-Za-z]{16}")
"""In what names a single conversation."""
REFERRING = (b"previous_response_id", b"item_reference")
"""Words of bodies that refer to what may be as large as a body."""
FILE = re.compile(rb"[A-Za-z0-9+/=]{1000,}")
FILE_TOKENS = 1_600
"""Of an image or a file in Base64; Anthropic counts as many for a large image."""
AT_ONCE = 50
"""Events of a stream that are sent before others are served."""
STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}


def build_app(
    service: Service, *, admin_url: str | None = None, items: str = ":memory:", read: Read | None = None
) -> LiveApp:
    """The gateway's endpoints.

    Args:
        service: what answers.
        admin_url: of the control plane, where that is another process; None: it is served here, too.
        items: file of the items that clients may refer to, shared with other workers.
        read: reads the settings again, where this process is the one to do so.

    Raises:
        SettingsError: keys are required and none is set.
    """
    kept, room = Items(items), BodyMemory(service.settings.server.max_bodies_bytes)
    service.metrics.room = room

    def generation(service: Service, live: LiveApp) -> Generation:
        def again(settings: GatewaySettings) -> Generation:
            successor = Service(settings, before=service)
            verifier_named(successor.settings.route.verifier)  # its imports are not the first request's to wait for
            return generation(successor, live)

        def take_over() -> None:
            room.most = service.settings.server.max_bodies_bytes
            service.take_over()

        app = _DataPlane(service, admin_url, kept, room, live).app()
        return Generation(service.file_settings, service.router.identity, app, again, take_over, service.clients)

    return LiveApp(lambda live: generation(service, live), read)


class _App(Starlette):
    """Starlette, but for the paths of steps: they are looked up at once, and pass through none of its layers. A request that
    has been answered gives back the room that its body has taken.
    """

    def __init__(
        self, steps: Mapping[str, Endpoint], room: BodyMemory, *, routes: Sequence[Route], lifespan: Lifespan[Any]
    ) -> None:
        super().__init__(routes=routes, lifespan=lifespan, exception_handlers={404: _no_such_path, 405: _no_such_path})
        self._steps, self._room = steps, room

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        try:
            await self._handle(scope, receive, send)
        finally:
            self._room.give_back(scope)

    async def _handle(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST" and not self.user_middleware:
            endpoint = self._steps.get(scope["path"])
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        response = await endpoint(HttpRequest(scope, receive))
        await response(scope, receive, send)


class _DataPlane(Guard):
    def __init__(
        self, service: Service, admin_url: str | None, items: Items, room: BodyMemory, reloading: Reloading
    ) -> None:
        super().__init__(service.settings.server, service.keys)
        self.service, self.started, self._admin_url = service, time.time(), admin_url
        self._items, self._room, self._reloading = items, room, reloading

    def app(self) -> Starlette:
        control = None
        if self._admin_url is None:
            service = self.service
            control = ControlPlane(
                service.settings, service.lasting.stores, service.keys, service.router, service.modes,
                lambda: sum_counts([(True, service.metrics.counts())], service.router.identity), self._reloading,
            )  # fmt: skip

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            work = asyncio.create_task(self.service.upkeep())
            async with contextlib.nullcontext() if control is None else control.upkeep():
                yield
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._items.close()
            await self.service.close()

        adapters = [plugins.load("protocols", name, BUILT_IN) for name in plugins.names("protocols", BUILT_IN)]
        steps = self.routes([(adapter.path, self._served(adapter), "POST", adapter, "agent") for adapter in adapters])
        known: list[tuple[str, Endpoint, str, ProtocolAdapter, Scope]] = [
            ("/messages/count_tokens", self.count_tokens, "POST", MESSAGES, "agent"),
            ("/models", self.models, "GET", CHAT, "agent"),
            ("/models/{model:path}", self.model, "GET", CHAT, "agent"),
            ("/decision", self.decision, "POST", CHAT, "agent"),
            ("/outcomes", self.outcomes, "POST", CHAT, "outcomes"),
        ]
        routes = steps + self.routes(known)
        # Codex tries a web socket first; this answer makes it take HTTP at once.
        routes += [
            Route(prefix + adapter.path, _no_socket, methods=["GET"]) for adapter in adapters for prefix in ("/v1", "")
        ]
        routes += [Route("/health", self.health), Route("/ready", self.ready)]
        if control is not None:
            routes += control.all_routes()
        else:
            paths = dict.fromkeys(path for path, *_ in ROUTES)
            routes += [
                Route(prefix + path, self.elsewhere, methods=["GET", "POST"]) for path in paths for prefix in ("/v1", "")
            ]
            routes += [Route(path, self.elsewhere) for path in PLAIN]
        app = _App({route.path: route.endpoint for route in steps}, self._room, routes=routes, lifespan=lifespan)
        if origins := self.server.cors_origins:
            from starlette.middleware.cors import CORSMiddleware

            app.add_middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["*"],
            )
        return app

    async def elsewhere(self, http: HttpRequest) -> Response:
        return json_response(CHAT.error(f"this is on the admin port: {self._admin_url}{http.url.path}", 404), 404)

    # -- one step -------------------------------------------------------------------------------------------------

    def _options(self, http: HttpRequest, request: Request, *, dry: bool = False) -> RequestOptions:
        """Overrides by header or by model name: r2v:slm, r2v:teacher, r2v@tau=0.3. Raises BadRequest."""
        model = request.wanted_model
        threshold = number(model.split("@tau=", 1)[1].split(":")[0], "r2v@tau=0.3") if "@tau=" in model else None
        usd = http.headers.get("x-r2v-budget-usd")
        mode = http.headers.get("x-r2v-mode", "")
        if mode not in ("", "active", "shadow"):
            raise BadRequest("`x-r2v-mode` may be shadow; only the gateway's settings make a step active")
        session, key, forced = _session_of(http, request), http.state.key, self._forced(http, model)
        if model not in ("", "auto") and not key.may_ask(model):
            raise Forbidden(f"this key may not ask for {model[:80]!r}")
        if not key.overrides and (forced, threshold, mode) not in ((None, None, ""), (None, None, "active")):
            raise Forbidden("this key may not choose the model or the threshold of a step")
        return RequestOptions(
            key, session or f"{key.tenant}/{fingerprint(request, key.tenant)}", session is not None, forced, threshold,
            shadow=mode == "shadow", dry=dry, traceparent=http.headers.get("traceparent"),
            session_usd=None if usd is None else max(0.0, number(usd, "x-r2v-budget-usd: 0.25")),
            subagent=short_name(subagent) if (subagent := http.headers.get(SUBAGENT_HEADER)) else "",
        )  # fmt: skip

    def _forced(self, http: HttpRequest, model: str) -> str | None:
        """The model that the client insists on, by its name in the settings, or None. Raises BadRequest."""
        named = http.headers.get("x-r2v-arm")
        if model.startswith("r2v"):
            named = named or (model.rsplit(":", 1)[1] if ":" in model else None)
        else:
            self._check_accepted(model)
        if named is not None and named not in (known := ("slm", *self.service.stronger)):
            raise BadRequest(f"arm {named[:40]!r} is none of {', '.join(known)}")
        return named

    def _check_accepted(self, model: str) -> None:
        """Raises BadRequest."""
        accepted = self.server.accepted_models
        if model not in ("", "auto") and not any(fnmatchcase(model, pattern) for pattern in accepted):
            raise BadRequest(f"model {model[:80]!r} is not served here; ask for r2v, r2v:slm, r2v:teacher or r2v@tau=0.3")

    async def _step(
        self, http: HttpRequest, request: Request, options: RequestOptions, live: LiveAnswer | None = None
    ) -> StepAnswer:
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
            tenant = http.state.key.tenant
            body, most = await self._body(http, room=self._room), self.server.max_body_bytes
            references = References(lambda identity: self._items.get(tenant, identity), most)
            size = most if any(word in body for word in REFERRING) else len(body)
            request = await in_slices(size, lambda: adapter.parse(body, http.headers, references))
            self._room.take(http.scope, http.state.key.id, references.bytes)
            options = await in_slices(len(body), lambda: self._options(http, request))
            if request.stream:
                return await self._streamed(http, request, options, adapter)
            answer = await self._step(http, request, options)
            await self._keep(tenant, request, answer, adapter)
            return json_response(adapter.whole(answer.reply, request, answer.served), 200, answer.facts)

        return endpoint

    async def _keep(self, tenant: str, request: Request, answer: StepAnswer, adapter: ProtocolAdapter) -> None:
        """What later requests may refer to; an answer that has been paid for is not lost because that cannot be kept."""
        try:
            kept = adapter.kept(request, answer.reply, answer.served)
            await in_slices(request.size, lambda: self._items.keep(tenant, kept))
        except (sqlite3.Error, KeyError, TypeError, ValueError) as error:
            logging.getLogger("uvicorn.error").warning("an answer cannot be referred to later (%s)", type(error).__name__)

    async def _streamed(
        self, http: HttpRequest, request: Request, options: RequestOptions, adapter: ProtocolAdapter
    ) -> Response:
        """The answer as events: while its model writes it, or as a whole once it is chosen among others. A decision that
        comes soon is in the headers, too; until a later one comes, pings keep the connection alive.
        """
        live, pause = LiveAnswer(), self.server.keep_alive_s
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
                await self._keep(options.key.tenant, request, await work, adapter)
            except Refused as error:
                why = str(error.facts.get("reason"))
                yield adapter.broken(str(error), error.status, CODES.get(why, why))
            finally:
                work.cancel()

        return StreamingResponse(events(), 200, headers, "text/event-stream")

    async def _events(
        self, live: LiveAnswer, begun: Piece | None, work: asyncio.Future[StepAnswer], request: Request,
        adapter: ProtocolAdapter,
    ) -> AsyncIterator[bytes]:  # fmt: skip
        """The events of a step that `work` serves; `begun` is the first piece of its answer, if it has come."""
        piece, encoder, pause = begun, None, self.server.keep_alive_s
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
                piece = None
                yield adapter.ping()
                continue
            if piece is None:
                break
        answer = await work
        if encoder is None:
            last = adapter.held(answer.reply, request, answer.served, answer.facts)
        else:
            last = encoder.end(answer.reply, live.rest, answer.facts)
        for i, event in enumerate(last):
            if i % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            yield event

    async def decision(self, http: HttpRequest) -> Response:
        body = await self._body(http, room=self._room)
        request = await in_slices(len(body), lambda: CHAT.parse(body))
        answer = await self.service.step(request, self._options(http, request, dry=True))
        return json_response({key.replace("-", "_"): value for key, value in answer.facts.items()})

    async def count_tokens(self, http: HttpRequest) -> Response:
        """An estimate, four characters a token: no model is called."""
        body = await self._body(http, room=self._room)
        return json_response({"input_tokens": await in_slices(len(body), lambda: _estimated_tokens(MESSAGES.parse(body)))})

    # -- what is known --------------------------------------------------------------------------------------------

    async def models(self, http: HttpRequest) -> Response:
        entries = [self._entry(name) for name in ("r2v", "r2v:slm", *(f"r2v:{name}" for name in self.service.stronger))]
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
        raw = json_object(await self._body(http, SHORT))
        session, reward, t = raw.get("session_id"), raw.get("reward"), raw.get("step")
        given = session if isinstance(session, str) else ""
        names = (given, scoped(http, given)) if http.state.key.may("admin") else (scoped(http, given),)
        if (session := await self.service.known(*names)) is None:
            raise BadRequest("`session_id` must name a session with at least one step")
        if isinstance(reward, bool):
            reward = float(reward)
        if not isinstance(reward, int | float) or not 0 <= reward <= 1:
            raise BadRequest("`reward` must be a number from 0 to 1")
        if t is not None and (not isinstance(t, int) or isinstance(t, bool) or not 0 <= t < 2**31):
            raise BadRequest("`step` must be the number of a step")
        self.service.ledger.outcome(session, t, float(reward))
        return json_response({"ok": True})

    async def health(self, http: HttpRequest) -> Response:
        elsewhere = {} if self._admin_url is None else {"admin_url": self._admin_url}
        return json_response({"status": "ok", **elsewhere})

    async def ready(self, http: HttpRequest) -> Response:
        found = await self.service.ready() | {"body_bytes": self._room.bytes}
        if found["ready"] and self._room.full:
            found |= {"ready": False, "problem": "the bodies of requests fill server.max_bodies_bytes"}
        return json_response(found, 200 if found["ready"] else 503)


def _estimated_tokens(request: Request) -> int:
    sent = b"".join(bytes(request.fields[key]) for key in ("messages", "tools") if key in request.fields)
    text, files = FILE.subn(b"", sent)
    return max(1, len(text) // 4 + FILE_TOKENS * max(files, request.images))


async def _no_such_path(http: HttpRequest, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    problem = f"{http.method} {http.url.path[:200]} is not served here"
    if http.url.path.startswith("/v1/v1/"):
        problem += ": the base URL of this client ends in /v1, which it adds itself; leave it out"
    adapter = MESSAGES if "/messages" in http.url.path else CHAT
    return json_response(adapter.error(problem, status), status, headers=dict(getattr(error, "headers", None) or {}))


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
    headers = dict(reversed(http.headers.items()))
    found: list[Any] = [headers.get(name) for name in SESSION_HEADERS]
    found += [metadata.get("session_id"), _session_in(metadata.get("user_id"))]
    # Many applications give one to all of their conversations.
    if isinstance(cached := request.said("prompt_cache_key"), str) and ID.search(cached):
        found.append(cached)
    for value in found:
        if isinstance(value, str) and value:
            return scoped(http, value)
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
