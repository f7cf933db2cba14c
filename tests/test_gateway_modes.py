"""Modes: what each wants of a step, what moves them, what the ledger counts for it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import closing

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.core.types import NO_USAGE, Action, Choice, Observation, Step
from r2v.gateway.ledger import LastVerdict, Ledger
from r2v.gateway.modes import ENDED, LABELLED, MODES, Modes, Unproven, part_of
from r2v.gateway.rows import Entry
from r2v.gateway.sessions import LocalSessions
from r2v.gateway.settings import RouteSettings
from servers import KEY
from test_gateway import make  # noqa: F401

AUTH = {"authorization": f"Bearer {KEY}"}
STEP = Step(
    0, 0, Observation("", False, None, None, "", ()), Choice(Action("x"), "teacher", (), (), None, None, NO_USAGE, NO_USAGE)
)


def write(
    ledger: Ledger, session: str, t: int = 0, *, at: float | None = None, verdict: LastVerdict | None = None, **changes
) -> None:
    known = {
        "id": f"{session}-{t}", "session": session, "t": t, "time": time.time() if at is None else at, "key": "k",
        "source": "teacher", "code": "risk_above", "model": "m", "score": 0.5, "score_kind": "risk", "threshold": 0.5,
        "propensity": 1.0, "slm_usd": 0.25, "teacher_usd": 0.5, "saved_usd": -0.25, "tokens": 3, "teacher_calls": 1,
        "candidates": 2, "overhead_ms": 1.0, "route": "escalate", "goal": "mend the Pump", "step": STEP,
    }  # fmt: skip
    ledger.write(Entry(**known | changes), verdict=verdict)


def modes(ledger: Ledger, **route) -> Modes:
    return Modes(RouteSettings(**{"mode": "observe"} | route), LocalSessions(ledger, 1.0), ledger)


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as opened:
        yield opened


@given(st.text(min_size=1), st.integers(0, 500))
def test_each_mode_is_at_least_as_safe_as_the_next(session, t):
    parts = [part_of(mode, RouteSettings(), session, t) for mode in MODES]
    assert [part.routed for part in parts] == sorted(part.routed for part in parts)
    assert not parts[1].routed and parts[1].drafted and parts[3].routed
    assert all(part.drafted for part in parts if part.routed)
    assert part_of("canary", RouteSettings(), session, t + 1).name == parts[2].name  # a session as a whole


def test_the_shares_of_observe_and_canary_are_as_set():
    route = RouteSettings(observe_share=0.25, canary_share=0.1)
    drafted = sum(part_of("observe", route, f"s{i}", t).drafted for i in range(100) for t in range(40))
    routed = sum(part_of("canary", route, f"s{i}", 0).routed for i in range(4000))
    assert 900 <= drafted <= 1100 and 340 <= routed <= 460


def test_one_moves_up_only_with_evidence_and_down_at_once(ledger, tmp_path):
    async def moves() -> None:
        state = modes(ledger)
        assert (await state.current()).mode == "observe"
        for i in range(LABELLED - 1):
            write(ledger, "s", i, alike=i % 4 != 0)
        with pytest.raises(Unproven, match=f"{LABELLED - 1} of {LABELLED} comparisons"):
            await state.promote()
        write(ledger, "s", LABELLED, alike=True)
        change = await state.promote()
        assert (change.mode, change.forced) == ("shadow", False) and "150 of 200 answers alike (69% to 80%)" in change.reason
        with pytest.raises(Unproven, match=r"rules has no fit\.json: fit one"):
            await state.promote()
        assert (await state.promote(force=True)).forced
        with pytest.raises(Unproven, match="active is above canary"):
            await state.rollback("active")
        assert (await state.rollback()).mode == "observe"
        with pytest.raises(Unproven, match=f"0 of {LABELLED}"):  # it begins anew
            await state.promote()

    asyncio.run(moves())


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (None, "has no fit.json"),
        ("{", "has no fit.json"),
        (False, r"gains \+1\.0 points over random escalation \(-0\.5 to \+2\.4\): not proven"),
        ("outcomes", "fitted on outcomes of the SLM alone"),
        (True, None),
    ],
)
def test_a_canary_takes_a_router_whose_own_fit_beats_random(ledger, tmp_path, report, told):
    fit = {"gain_over_random": 0.01, "gain_ci95": [-0.005, 0.024], "ready": report}
    if report == "outcomes":
        fit = {"gain_over_random": None, "gain_ci95": None, "ready": False}
    if report is not None:
        (tmp_path / "fit.json").write_text("{" if report == "{" else json.dumps(fit))
    state = modes(ledger, mode="shadow", router=str(tmp_path))
    if told is None:
        assert asyncio.run(state.promote()).mode == "canary"
    else:
        with pytest.raises(Unproven, match=told):
            asyncio.run(state.promote())


@pytest.mark.parametrize(
    ("failed", "sessions", "told"),
    [
        (0, ENDED - 1, "it takes 50 of each"),
        (30, 150, r"15 of 150 others: \+2 to \+18 points; \+10"),
        (15, 150, None),
    ],
)
def test_all_is_routed_only_when_routed_sessions_do_not_fail_more(ledger, failed, sessions, told):
    state = modes(ledger, mode="canary")
    asyncio.run(state.current())
    for i in range(150):
        for mode, wrong in (("canary", failed), ("control", 15)):
            if mode == "canary" and i >= sessions:
                continue
            write(ledger, f"{mode}{i}", mode=mode)
            ledger.outcome(f"{mode}{i}", None, 1.0)
            ledger.outcome(f"{mode}{i}", None, float(i >= wrong))  # the last outcome counts
    write(ledger, "mixed", 0, mode="canary")
    write(ledger, "mixed", 1, mode="observe")
    ledger.outcome("mixed", None, 0.0)
    assert ledger.ended("canary", 0.0) == (sessions, failed)
    if told is None:
        assert asyncio.run(state.promote()).mode == "active"
        with pytest.raises(Unproven, match="the last mode"):
            asyncio.run(state.promote(force=True))
    else:
        with pytest.raises(Unproven, match=told):
            asyncio.run(state.promote())


def test_a_promotion_outlasts_restarts_until_the_setting_is_edited(tmp_path):
    def opened(mode: str, force: bool = False) -> str:
        with closing(Ledger(tmp_path / "ledger.db")) as ledger:
            state = modes(ledger, mode=mode)
            if force:
                asyncio.run(state.promote(force=True))
            return asyncio.run(state.current()).mode

    assert opened("observe", force=True) == "shadow"
    assert opened("observe") == "shadow"
    assert opened("active") == "active"  # by hand
    assert opened("observe") == "observe"


def test_days_and_sessions_say_what_was_saved_beside_what_failed(ledger):
    monday, tuesday = 86_400.0 * 20_000, 86_400.0 * 20_001
    write(ledger, "a", 0, at=monday, alike=True)
    write(ledger, "a", 1, at=monday + 5, alike=False, mode="observe")
    write(ledger, "b", 0, at=tuesday, source="slm", route="continue", saved_usd=1.0, goal="read 100% of it", mode="active")
    for session, reward in (("a", 0.0), ("a", 1.0), ("b", 0.0)):
        ledger.outcome(session, None, reward)
    first, second, today = ledger.days(0.0)
    assert (first["day"], first["steps"], first["usd"], first["labelled"], first["alike"]) == ("2024-10-04", 2, 1.5, 2, 1)
    assert (second["steps"], second["teacher_steps"], second["saved_usd"]) == (1, 0, 1.0)
    assert (today["steps"], today["ended"], today["failed"]) == (0, 2, 1)
    assert len(ledger.days(tuesday)) == 2

    def found(**wanted) -> list[str]:
        return [row["session"] for row in ledger.sessions(10, **wanted)]

    assert found() == ["b", "a"] and found(text="PUMP") == ["a"] and found(text="100%") == ["b"] and found(text="%") == ["b"]
    assert found(mode="observe") == ["a"] and found(escalated=True) == ["a"]
    assert found(failed=True) == ["b"] and found(failed=False) == ["a"]


def test_the_mode_over_http(make):  # noqa: F811
    world = make(route__mode="observe")

    def change(**body) -> httpx.Response:
        return httpx.post(f"{world.url}/v1/mode", json=body, headers=AUTH)

    shown = httpx.get(f"{world.url}/v1/mode", headers=AUTH).json()
    assert shown["mode"] == "observe" and shown["next"] == {
        "allowed": False, "reason": f"0 of {LABELLED} comparisons with the teacher so far; let it observe on",
    }  # fmt: skip
    refused = change(action="promote")
    assert refused.status_code == 409 and "comparisons" in refused.json()["error"]["message"]
    promoted = change(action="promote", force=True).json()
    assert (promoted["mode"], promoted["forced"]) == ("shadow", True)
    assert httpx.get(f"{world.url}/v1/stats?days=2", headers=AUTH).json()["mode"] == "shadow"
    assert change(action="rollback").json()["mode"] == "observe"
    for wrong in ({"action": "up"}, {}, {"action": "rollback", "to": "off"}, {"action": "promote", "forse": True}):
        assert change(**wrong).status_code == 400
    assert httpx.post(f"{world.url}/v1/mode", json={"action": "rollback"}).status_code == 401
