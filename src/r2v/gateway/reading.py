"""What is read of a ledger, wherever it is kept: the same questions in the same SQL to SQLite and to Postgres."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from r2v.core.seeds import derive_seed
from r2v.core.types import SOLVED, Decision, ScoreKind, Step
from r2v.gateway.rows import COLUMNS_OF, Entry, entry_of

QUIET_S = 600.0
"""After so long without a step a session has ended: only then its verdict is evidence of how sessions end."""
RECENT = 5_000
"""Sessions that `LedgerReader.sessions` looks through from where it begins, so that a filter that fits none stays cheap."""
EVIDENCE = 2_000
"""The latest comparisons, and the latest sessions of a mode, that evidence for another mode rests on."""


class WholeSession(NamedTuple):
    """All that is known of a session that has ended, or has not."""

    entries: list[Entry]
    outcome: tuple[float, str] | None
    """As `LedgerReader.outcome_of` has it."""
    tools: str


class LedgerReader(ABC):
    """Reads a ledger. The SQL is what SQLite and Postgres have in common; values stand in it as `:name`."""

    LATEST_OUTCOME: str
    """The column of `outcomes` that grows with each."""

    @abstractmethod
    def _read(self, query: str, values: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
        """(names of the columns, rows)."""

    @abstractmethod
    def batches(self, query: str, values: Mapping[str, Any], size: int) -> Iterator[list[tuple[Any, ...]]]:
        """The rows, so many at a time: all of them need not fit into memory."""

    @abstractmethod
    def close(self) -> None: ...

    def _all(self, query: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        return self._read(query, values or {})[1]

    def _dicts(self, query: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        names, rows = self._read(query, values)
        return [dict(zip(names, row, strict=True)) for row in rows]

    # -- a session --------------------------------------------------------------------------------------------------

    def steps(self, session: str) -> list[Entry]:
        query = f"SELECT {COLUMNS_OF['steps']} FROM steps WHERE session = :session ORDER BY t, time"
        return [entry_of(row) for row in self._all(query, {"session": session})]

    def has(self, session: str) -> bool:
        return bool(self._all("SELECT 1 FROM steps WHERE session = :session LIMIT 1", {"session": session}))

    def tools(self, session: str) -> str:
        """JSON of what the session was offered when it began; empty where nothing was, or the ledger is redacted."""
        rows = self._all("SELECT text FROM tools WHERE session = :session", {"session": session})
        return rows[0][0] if rows else ""

    def outcomes(self, session: str) -> list[tuple[int | None, float]]:
        """(step, or None for the whole session; reward) of each that was sent, the last where several were; by time."""
        query = f"SELECT t, reward FROM outcomes WHERE session = :session ORDER BY {self.LATEST_OUTCOME}"
        latest: dict[int | None, float] = {}
        for t, reward in self._all(query, {"session": session}):
            latest.pop(t, None)
            latest[t] = reward
        return list(latest.items())

    def abandoned(self, session: str) -> list[dict[str, Any]]:
        """What steps of the session that left no row may have cost, and why they left none; the earliest first."""
        query = "SELECT time, calls, tokens, usd, why FROM abandoned WHERE session = :session ORDER BY time"
        return self._dicts(query, {"session": session})

    def outcome_of(self, session: str) -> tuple[float, str] | None:
        """(reward, name of the verdict that it was taken from; empty where it was sent); None where nothing is known."""
        last = f"ORDER BY {self.LATEST_OUTCOME} DESC LIMIT 1"
        sent = f"SELECT reward, '' FROM outcomes WHERE session = :session AND t IS NULL {last}"
        verdict = "SELECT value, name FROM verdicts WHERE session = :session"
        found = (self._all(query, {"session": session}) for query in (sent, verdict))
        return next(((rows[0][0], rows[0][1]) for rows in found if rows), None)

    # -- many sessions ----------------------------------------------------------------------------------------------

    def all_sessions(self) -> Iterator[str]:
        """Names of all sessions with a step, the earliest first."""
        for (session,) in self._all("SELECT session FROM steps GROUP BY session ORDER BY MIN(time)"):
            yield session

    def whole_sessions(self, most_steps: int | None = None) -> Iterator[WholeSession]:
        """All sessions with a step, the earliest first; of more steps than `most_steps` those of some tasks (`picked`)."""
        if most_steps is None or self.steps_in_all() <= most_steps:
            names: Iterable[str] = self.all_sessions()
        else:
            names = [name for name, _ in picked(self._all(NAMED), most_steps)]
        for session in names:
            yield WholeSession(self.steps(session), self.outcome_of(session), self.tools(session))

    def steps_in_all(self) -> int:
        """How many steps are kept."""
        return self.count("SELECT CAST(COALESCE(SUM(steps), 0) AS BIGINT) FROM session_totals") + self.uncounted()

    def count(self, query: str, values: Mapping[str, Any] | None = None) -> int:
        """The number that a question is answered with."""
        ((found,),) = self._all(query, values)
        return int(found)

    def span(self) -> tuple[float, float] | None:
        """Times of the first and of the last step; None of an empty ledger."""
        ends = "SELECT (SELECT MIN(time) FROM steps), (SELECT MAX(time) FROM steps)"  # each from the index
        ((first, last),) = self._all(ends)
        return None if first is None else (first, last)

    def uncounted(self) -> int:
        """How many steps of before are not in the totals yet."""
        return 0

    def last_end(self) -> float | None:
        """When the latest outcome or verdict came."""
        ((last,),) = self._all("SELECT MAX(ended) FROM session_totals WHERE ended IS NOT NULL")
        return None if last is None else float(last)

    def scores_and_failures(self, sessions: int, kind: ScoreKind | None) -> tuple[list[tuple[float, float]], int]:
        """Scores against outcomes, where the SLM alone played: only there is it known how continuing ended.

        Args:
            sessions: how many of the latest sessions with an outcome to look at.
            kind: leave out scores that are known to be of another kind; None: leave out none.

        Returns:
            [(score, 1.0 for failure) of each step], and of how many sessions they are.
        """
        of_kind = "" if kind is None else "AND COALESCE(s.score_kind, :kind) = :kind"
        values = {"sessions": sessions, "bound": SOLVED, "quiet": time.time() - QUIET_S}
        rows = self._all(
            "SELECT s.session, s.score, CASE WHEN e.reward < :bound THEN 1.0 ELSE 0.0 END FROM "
            "(SELECT * FROM session_totals WHERE ended IS NOT NULL AND (verdict = '' OR ended < :quiet) "
            "ORDER BY ended DESC LIMIT :sessions) e "
            f"CROSS JOIN steps s WHERE s.session = e.session AND e.teacher_steps = 0 AND s.score IS NOT NULL {of_kind}",
            values if kind is None else {**values, "kind": kind},
        )
        return [(score, float(failed)) for _, score, failed in rows], len({session for session, _, _ in rows})

    def sessions(
        self, limit: int, *, text: str = "", mode: str | None = None, escalated: bool = False, failed: bool | None = None,
        before: float | None = None, tenant: str | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The latest sessions, the newest first, among the latest `RECENT`.

        Args:
            limit: how many at most.
            text: part of the id or of the goal, in any case.
            mode: of the latest step.
            escalated: only those in which the router wanted the teacher.
            failed: only those whose outcome is a failure, or a success.
            before: only those whose last step was before that time: the next page.
            tenant: whose; None: everybody's.
        """
        values: dict[str, Any] = {"limit": limit, "recent": RECENT, "before": math.inf if before is None else before}
        whose, wanted = "", ["1 = 1"]
        if tenant is not None:
            whose = "AND session >= :first AND session < :after"
            values |= {"first": f"{tenant}/", "after": f"{tenant}0"}
        if text:
            wanted.append("instr(lower(session || ' ' || goal), :text) > 0")
            values["text"] = text.lower()
        if mode is not None:
            wanted.append("mode = :mode")
            values["mode"] = mode
        if escalated:
            wanted.append("escalated > 0")
        if failed is not None:
            wanted.append(f"reward {'<' if failed else '>='} :bound")
            values["bound"] = SOLVED
        return self._dicts(
            "SELECT session, steps, time, teacher_calls, slm_usd, teacher_usd, saved_usd, goal, mode, labelled, "
            "CASE WHEN labelled > 0 THEN alike END AS alike, escalated, reward, verdict FROM (SELECT * FROM session_totals "
            f"WHERE time < :before {whose} ORDER BY time DESC LIMIT :recent) latest "
            f"WHERE {' AND '.join(wanted)} ORDER BY time DESC LIMIT :limit",
            values,
        )

    def days(self, since: float) -> list[dict[str, Any]]:
        """What was served, spent, saved, labelled and failed on each day (UTC) from that of a time on, the earliest first. A
        session's outcome is its last, and counts on the day that it was reported.
        """
        counts = ("steps", "teacher_steps", "labelled", "alike", "ended", "failed")
        names = ("steps", "teacher_steps", "usd", "saved_usd", "labelled", "alike", "ended", "failed")
        sums = (f"CAST(SUM({name}) AS BIGINT)" if name in counts else f"SUM({name})" for name in names)
        rows = self._all(
            f"SELECT day, {', '.join(sums)} FROM day_totals WHERE day >= :first "
            "GROUP BY day HAVING SUM(steps) <> 0 OR SUM(usd) <> 0 OR SUM(ended) <> 0 ORDER BY day",
            {"first": int(since // 86_400)},
        )
        return [
            {"day": time.strftime("%Y-%m-%d", time.gmtime(86_400 * day)), **dict(zip(names, sums, strict=True))}
            for day, *sums in rows
        ]

    def labels(self, since: float) -> tuple[int, int]:
        """(steps whose answers were compared, those of them that were alike) from a time on, of the latest `EVIDENCE`."""
        ((alike, labelled),) = self._all(
            "SELECT CAST(COALESCE(SUM(alike), 0) AS BIGINT), COUNT(*) FROM "
            "(SELECT alike FROM comparisons WHERE time >= :since ORDER BY time DESC LIMIT :most) latest",
            {"since": since, "most": EVIDENCE},
        )
        return labelled, alike

    def ended(self, mode: str, since: float) -> tuple[int, int]:
        """How many sessions have ended, of those that began after a time and were served in one mode from first to last.

        Returns:
            (sessions with an outcome, those of them that failed) of the latest `EVIDENCE`. A verdict counts once a session
            has been quiet.
        """
        ((ended, failed),) = self._all(
            "SELECT COUNT(*), COUNT(CASE WHEN reward < :bound THEN 1 END) FROM (SELECT reward FROM session_totals "
            "WHERE only_mode = :mode AND begun >= :since AND ended IS NOT NULL AND (verdict = '' OR time < :quiet) "
            "ORDER BY begun DESC LIMIT :most) latest",
            {"mode": mode, "since": since, "quiet": time.time() - QUIET_S, "bound": SOLVED, "most": EVIDENCE},
        )
        return ended, failed


NAMED = "SELECT session, goal, steps FROM session_totals ORDER BY begun, session"
"""What `picked` takes."""


def picked(sessions: Iterable[tuple[str, str, int]], most_steps: int | None) -> list[tuple[str, int]]:
    """The sessions of some tasks, drawn by the hashes of their goals, so that the same ones are drawn of every copy.

    Args:
        sessions: (name, goal, steps) of each.
        most_steps: as many tasks as have no more steps together, one at least; None: all.

    Returns:
        (name, steps) of each, in the order given.
    """
    found = list(sessions)
    if most_steps is not None and sum(steps for _, _, steps in found) > most_steps:
        of_goal: dict[str, int] = {}
        for _, goal, steps in found:
            of_goal[goal] = of_goal.get(goal, 0) + steps
        drawn: set[str] = set()
        taken = 0
        for goal in sorted(of_goal, key=lambda goal: derive_seed("task", goal)):
            taken += of_goal[goal]
            if drawn and taken > most_steps:
                break
            drawn.add(goal)
        found = [one for one in found if one[1] in drawn]
    return [(name, steps) for name, _, steps in found]


def words_of(step: Step) -> dict[str, Any] | None:
    """What was said at a step: what came in, the SLM's drafts with their scores, the answer; None in a redacted ledger."""
    choice = step.choice
    if choice.reply is None:
        return None
    scores = choice.scores or (None,) * len(choice.candidates)
    drafts = [
        {"text": candidate.action.text, "score": score, "logp": candidate.logp}
        for candidate, score in zip(choice.candidates, scores, strict=True)
    ]
    return {"messages": step.messages, "drafts": drafts, "reply": choice.reply}


def decisions_of(entries: list[Entry]) -> tuple[Decision, ...]:
    return tuple(entry.step.choice.decision for entry in entries if entry.step.choice.decision is not None)
