"""The control plane over HTTP: what operators look at and switch. It reads through a connection of its own, in threads, so
that no agent waits for it; it can be a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from r2v.core.errors import R2VError
from r2v.gateway.budgets import DAY
from r2v.gateway.guard import SHORT, Guard, json_response, number, scoped
from r2v.gateway.keys import KeyRing, Scope
from r2v.gateway.ledger import Ledger
from r2v.gateway.metrics import Counts, Overview
from r2v.gateway.modes import Modes, Unproven
from r2v.gateway.reading import words_of
from r2v.gateway.reload import Reloading
from r2v.gateway.routing import Configured
from r2v.gateway.settings import GatewaySettings, Mode
from r2v.gateway.step import reachable
from r2v.gateway.stores import Stores
from r2v.maths.stats import wilson
from r2v.messages.conversation import BadRequest, Json
from r2v.messages.openai_chat import CHAT
from r2v.messages.protocol import json_object
from r2v.runtime.slices import in_thread

FINISH_S = 5.0
"""For what is left to ship when the gateway ends."""
JOURNAL_DAYS = 1.0
"""How long a journal keeps quiet sessions that are shipped, where their state is in Redis."""
PAUSE_S = 0.02
"""Between transactions of the upkeep: writers go first."""
DELETED_EVERY_S = 3600.0


class ModeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/mode`."""

    action: Literal["promote", "rollback"]
    force: bool = False
    to: Mode = "observe"


class ControlPlane(Guard):
    def __init__(
        self, settings: GatewaySettings, stores: Stores, keys: KeyRing, router: Configured, modes: Modes,
        counts: Callable[[], Counts], reloading: Reloading,
    ) -> None:  # fmt: skip
        """`counts`: what the processes of the data plane have counted together."""
        super().__init__(settings.server, keys)
        self._settings, self._stores, self._modes = settings, stores, modes
        self._journal, self._sessions, self._shipping = stores.ledger, stores.sessions, stores.shipping
        self._ledger = stores.reader
        self._overview, self._counts = Overview(router, self._ledger, self._shipping), counts
        self._reloading = reloading
        self._names = {name: model.model for name, model in settings.models.items()}

    def all_routes(self) -> list[Route]:
        known = [(path, partial(answer, self), method, CHAT, scope) for path, answer, method, scope in ROUTES]
        metrics = self._guarded(self.metrics, CHAT, "admin")
        return [*self.routes(known), *map(Route, PLAIN, (self.page, metrics))]

    def app(self) -> Starlette:
        """The control plane as a process of its own."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with self.upkeep():
                yield
            await self._stores.close()

        async def health(http: HttpRequest) -> Response:
            return json_response({"status": "ok"})

        return Starlette(routes=[*self.all_routes(), Route("/health", health)], lifespan=lifespan)

    # -- upkeep ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def upkeep(self) -> AsyncIterator[None]:
        """Meanwhile the ledger is kept up, and shipped where it is shared: in the end what is left of it."""
        works = [asyncio.create_task(self._keep_up())]
        if self._shipping is not None:
            works.append(asyncio.create_task(self._shipping.run()))
        try:
            yield
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            if self._shipping is not None:
                await in_thread(self._shipping.finish, FINISH_S)

    async def _keep_up(self) -> None:
        """Count the steps of before there were totals; from then on delete what is older than `store.keep_days`, and of a
        journal what is shipped.
        """
        try:
            await self._in_batches(Ledger.count_old)
            while self._shipping is not None and not self._shipping.caught_up:
                await asyncio.sleep(PAUSE_S)  # nothing is deleted before it is known what has been shipped
            while True:
                with contextlib.suppress(OSError):  # the shared ledger is out of reach: the next time
                    if (days := self._settings.store.keep_days) is not None:
                        await self._delete_old(days)
                    if self._settings.store.redis_env is not None:  # which has the sessions that go on
                        await self._trim(JOURNAL_DAYS)
                await asyncio.sleep(DELETED_EVERY_S)
        except (R2VError, sqlite3.Error) as error:
            logging.getLogger("uvicorn.error").warning("the upkeep of the ledger stopped: %s", error)

    async def _in_batches(self, step: Callable[[Ledger], int]) -> int:
        """Call `step` until it returns 0, on connections of its own, so that no step of a session waits for them.

        Returns:
            The sum of what it returned.
        """
        ledger, total = await asyncio.to_thread(Ledger, Path(self._settings.store.path)), 0
        try:
            while found := await asyncio.to_thread(step, ledger):
                total += found
                await asyncio.sleep(PAUSE_S)
        finally:
            ledger.close()
        return total

    async def _delete_old(self, days: float) -> int:
        """Raises OSError."""
        before = time.time() - DAY * days
        if self._shipping is None:
            return await self._in_batches(lambda ledger: ledger.delete_old(before))
        deleted = 0
        while found := await in_thread(self._shipping.shared.delete_old, before):
            deleted += found
            await asyncio.sleep(PAUSE_S)
        await self._trim(days)
        return deleted

    async def _trim(self, days: float) -> None:
        """Delete sessions from the journal that are shipped, and quiet for so many days."""
        if self._shipping is not None and (shared := self._shipping.identity):
            before = time.time() - DAY * days
            await self._in_batches(lambda journal: journal.delete_old(before, shared))

    async def cleanup(self, http: HttpRequest) -> Response:
        """{"keep_days": 30} deletes now what is older; without it `store.keep_days` counts."""
        days = json_object(await self._body(http, SHORT)).get("keep_days", self._settings.store.keep_days)
        if isinstance(days, bool) or not isinstance(days, int | float) or days <= 0:
            raise BadRequest("`keep_days` must be a number above 0, here or as store.keep_days in the settings")
        if left := await in_thread(self._journal.uncounted):
            raise BadRequest(f"{left} steps of an older ledger are being counted; try again in a while")
        with reachable():
            return json_response({"deleted_sessions": await self._delete_old(days)})

    # -- what is known --------------------------------------------------------------------------------------------

    async def sessions(self, http: HttpRequest) -> Response:
        """The tenant's latest (everybody's where the admin asks), or those `before=TIME`; `text`, `mode`, `escalated=1`,
        `failed=1` and `failed=0` leave out others.
        """
        wanted = http.query_params
        failed = {"1": True, "0": False}.get(wanted.get("failed", ""))
        before = wanted.get("before")
        since = number(before, "before=1767225600") if before else None
        with reachable():
            found = await in_thread(
                self._ledger.sessions, 100, text=wanted.get("text", ""), mode=wanted.get("mode") or None, failed=failed,
                escalated=wanted.get("escalated") == "1", before=since,
                tenant=None if http.state.key.may("admin") else http.state.key.tenant,
            )  # fmt: skip
        return json_response({"sessions": found})

    async def session(self, http: HttpRequest) -> Response:
        identity = http.path_params["session"]
        names = (identity, scoped(http, identity)) if http.state.key.may("admin") else (scoped(http, identity),)
        with reachable():
            found = await in_thread(self._session, *names)
        return json_response(CHAT.error("no such session", 404), 404) if found is None else json_response(found)

    def _session(self, *names: str) -> Json | None:
        """What is known of the session that goes by one of the names, the last first."""
        ledger = self._ledger
        entries = next((entries for name in reversed(names) if (entries := ledger.steps(name))), None)
        if entries is None:
            return None
        steps = [
            {
                "step": e.t, "decision_id": e.id, "time": e.time, "arm": e.source, "reason": e.code, "model": e.model,
                "risk": e.score, "threshold": e.threshold, "propensity": e.propensity, "cost_usd": e.slm_usd + e.teacher_usd,
                "saved_usd": e.saved_usd, "tokens": e.tokens, "candidates": e.candidates,
                "scores": list(e.step.choice.scores), "overhead_ms": e.overhead_ms, "would": e.route,
                "why": e.step.choice.decision.reason if e.step.choice.decision else None,
                "mode": e.mode, "alike": e.alike, "words": words_of(e.step), "verdicts": dict(e.step.verdicts),
                "parsed_calls": e.step.choice.parsed_calls,
            }
            for e in entries
        ]  # fmt: skip
        name = entries[0].session
        outcomes = [{"step": t, "reward": reward, "source": "sent"} for t, reward in ledger.outcomes(name)]
        if (final := ledger.outcome_of(name)) is not None and final[1]:
            outcomes.append({"step": None, "reward": final[0], "source": "verdict", "verdict": final[1]})
        return {
            "session_id": name.split("/", 1)[-1], "goal": entries[0].goal, "steps": steps, "outcomes": outcomes,
            "abandoned": ledger.abandoned(name),
        }  # fmt: skip

    async def stats(self, http: HttpRequest) -> Response:
        days = http.query_params.get("days")
        since = None if not days else max(0.0, time.time() - DAY * number(days, "days=14"))
        killed, change = await self._sessions.killed(), await self._modes.current()
        found = await in_thread(self._stats, self._counts(), since)
        reloads = msgspec.to_builtins(self._reloading.state)
        return json_response({**found, "mode": change.mode, "killed": killed, "reloads": reloads})

    def _stats(self, counts: Counts, since: float | None) -> Json:
        found = self._overview.stats(counts)
        found["models"] = {
            name: {
                "model": model,
                "available": counts.available.get(name, True),
                "calls": {code: count for (of, code), count in counts.attempts.items() if of == name},
            }
            for name, model in self._names.items()
        }
        found["uncounted"] = self._journal.uncounted()
        if self._shipping is not None:
            found["shared"] = {
                "ledger": self._shipping.shared.name, "waiting_rows": self._shipping.waiting(),
                "problem": self._shipping.problem,
            }  # fmt: skip
        if since is not None:
            try:
                found["days"] = self._ledger.days(since)
            except OSError as error:
                found["days"] = []
                found["shared"]["problem"] = found["shared"]["problem"] or f"the shared ledger is out of reach ({error})"
            for day in found["days"]:
                day["alike_ci95"] = wilson(day["alike"], day["labelled"])
                day["failed_ci95"] = wilson(day["failed"], day["ended"])
        return found

    async def mode(self, http: HttpRequest) -> Response:
        change = await self._modes.current()
        with reachable():
            enough, reason = await in_thread(self._modes.evidence, change)
        return json_response({**asdict(change), "next": {"allowed": enough, "reason": reason}})

    async def change_mode(self, http: HttpRequest) -> Response:
        """{"action": "promote", "force": false}, or {"action": "rollback", "to": "observe"}; 409 where nothing allows it."""
        try:
            wanted = msgspec.json.decode(await self._body(http, SHORT), type=ModeRequest)
        except msgspec.DecodeError as error:
            raise BadRequest(str(error)) from None
        try:
            if wanted.action == "promote":
                with reachable():
                    await self._modes.promote(force=wanted.force)
            else:
                await self._modes.rollback(wanted.to)
        except Unproven as error:
            return json_response(CHAT.error(str(error), 409), 409)
        return await self.mode(http)

    async def kill(self, http: HttpRequest) -> Response:
        """The kill switch: {"on": true} gives every step to the SLM."""
        on = json_object(await self._body(http, SHORT)).get("on")
        if not isinstance(on, bool):
            raise BadRequest("`on` must be true or false")
        await self._sessions.kill(on)
        return json_response({"on": on})

    async def reload(self, http: HttpRequest) -> Response:
        """Read the settings file again; 409 and what is wrong where those in use stay."""
        await self._body(http, SHORT)
        try:
            await self._reloading.reload()
        except R2VError as error:
            return json_response(CHAT.error(str(error), 409), 409)
        return json_response(msgspec.to_builtins(self._reloading.state))

    async def metrics(self, http: HttpRequest) -> Response:
        text = await in_thread(self._overview.prometheus, self._counts(), self._reloading.state)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def page(self, http: HttpRequest) -> Response:
        """Holds no data: what it shows it fetches with the key that the reader types in."""
        text = files("r2v.gateway").joinpath("page.html").read_text("utf-8")
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
        )
        return HTMLResponse(text, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})


ROUTES: tuple[tuple[str, Callable[[ControlPlane, HttpRequest], Awaitable[Response]], str, Scope], ...] = (
    ("/sessions", ControlPlane.sessions, "GET", "agent"),
    ("/sessions/{session:path}", ControlPlane.session, "GET", "agent"),
    ("/stats", ControlPlane.stats, "GET", "admin"),
    ("/kill", ControlPlane.kill, "POST", "admin"),
    ("/mode", ControlPlane.mode, "GET", "admin"),
    ("/mode", ControlPlane.change_mode, "POST", "admin"),
    ("/cleanup", ControlPlane.cleanup, "POST", "admin"),
    ("/reload", ControlPlane.reload, "POST", "admin"),
)
"""With and without /v1."""
PLAIN = ("/", "/metrics")
"""Without."""
