"""What every session, key and day has been charged, and what is held for steps that have not ended: part of the ledger.

A hold is charged in full when it is made. Ending a step takes back what it did not spend; a step that never ends, because
its process was killed, stays charged.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from r2v.gateway.budgets import DAY, Account, Amount
from r2v.gateway.rows import INSERT, AbandonedRow

SCHEMA = (
    "CREATE TABLE charges (scope TEXT PRIMARY KEY, calls INTEGER NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, "
    "sessions INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE holds (id TEXT PRIMARY KEY, session TEXT NOT NULL, key TEXT NOT NULL, day INTEGER NOT NULL, "
    "process INTEGER NOT NULL, calls INTEGER NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, "
    "sessions INTEGER NOT NULL, room BLOB) WITHOUT ROWID",
)
FREE_BYTES = 32_000_000
"""Of the disk: with less no step begins, because its row might not fit."""
ADD = "calls = calls + ?, tokens = tokens + ?, usd = usd + ?, sessions = sessions + ?"


class Transaction:
    """All or nothing of one connection; quicker than `contextlib.contextmanager`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # a full disk ends it by itself
                self._db.execute("ROLLBACK")


_PART = nullcontext()


class Accounts:
    """All of it in the ledger's database, through its connection. Every method raises sqlite3.Error; what it writes is one
    transaction, or a part of the one that is open.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path, self._folder = db, path, path.parent
        self._whole = Transaction(db)
        self.room = 0
        """Bytes that a hold keeps free for the row of its step: 0, until a row did not fit."""

    @property
    def replicas(self) -> int:
        """How many gateways this one knows to spend from its budgets, itself among them; in the ledger, to outlast both."""
        return int(self._db.execute("SELECT replicas FROM identity").fetchone()[0])

    @replicas.setter
    def replicas(self, number: int) -> None:
        self._db.execute("UPDATE identity SET replicas = ?", (number,))

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing; other processes wait. One within another is a part of it."""
        return _PART if self._db.in_transaction else self._whole

    def charged(self, scope: str) -> Amount:
        """What a scope has been charged: summed up from the steps where nothing has been charged since they were written."""
        row = self._db.execute("SELECT calls, tokens, usd, sessions FROM charges WHERE scope = ?", (scope,)).fetchone()
        if row is None:
            amount = self._before(scope)
            self._db.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?)", (scope, *amount.parts))
            return amount
        return Amount(*row)

    def scopes(self) -> list[str]:
        """Those that have been charged anything."""
        rows = self._db.execute("SELECT scope FROM charges WHERE calls OR tokens OR usd OR sessions")
        return [scope for (scope,) in rows]

    def hold(self, name: str, account: Account, amount: Amount) -> None:
        """Charge what a step can cost. Raises sqlite3.OperationalError where its row would not fit on the disk."""
        self._check_disk()
        room = b"\0" * self.room if self.room else None
        values = (name, account.session, account.key, account.day, os.getpid(), *amount.parts, room)
        with self.transaction():
            self._db.execute("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            self._charge(account, amount)

    def extend(self, name: str, account: Account, amount: Amount) -> None:
        """Charge more to a step."""
        with self.transaction():
            self._db.execute(f"UPDATE holds SET {ADD} WHERE id = ?", (*amount.parts, name))
            self._charge(account, amount)

    def release(self, name: str, spent: Amount, lost: Amount, why: str | None) -> None:
        """End a hold; nothing where it has ended already.

        Args:
            name: of the hold.
            spent: what the step is known to have cost.
            lost: what it may have cost beside that.
            why: what became of it, where it left no row; None where its row holds what it spent.
        """
        with self.transaction():
            row = self._db.execute("DELETE FROM holds WHERE id = ? RETURNING *", (name,)).fetchone()
            if row is None:
                return
            _, session, key, day, _, calls, tokens, usd, sessions, _ = row
            account, held = Account(session, key, day), Amount(calls, tokens, usd, sessions)
            self._charge(account, Amount(*(spent + lost).parts[:3], sessions) - held)
            rest = lost if why is None else spent + lost
            if rest != Amount():
                self._abandon(name, session, key, rest, why or "lost")

    def recover(self, process: int | None = None) -> int:
        """Note as abandoned what a process (None: any) held when it was killed; it stays charged. Returns how many."""
        with self.transaction():
            which = "1" if process is None else "process = ?"
            rows = self._db.execute(
                f"DELETE FROM holds WHERE {which} RETURNING id, session, key, calls, tokens, usd",
                () if process is None else (process,),
            ).fetchall()
            for name, session, key, *amount in rows:
                self._abandon(name, session, key, Amount(*amount), "killed")
        return len(rows)

    def check(self) -> None:
        """Write and delete as much as a step may need."""
        self._check_disk()
        with self.transaction():
            nobody = (0, 0, 0, 0.0, 0)
            self._db.execute(
                "INSERT INTO holds VALUES ('', '', '', 0, ?, ?, ?, ?, ?, zeroblob(?))", (*nobody, self.room + 4096)
            )
            self._db.execute("DELETE FROM holds WHERE id = ''")

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < FREE_BYTES:
            raise sqlite3.OperationalError(f"only {free // 10**6} MB of disk are left beside {self._path}")

    def _charge(self, account: Account, amount: Amount) -> None:
        scopes = account.scopes
        changed = self._db.execute(f"UPDATE charges SET {ADD} WHERE scope IN (?, ?, ?)", (*amount.parts, *scopes))
        if changed.rowcount < len(scopes):
            known = {scope for (scope,) in self._db.execute("SELECT scope FROM charges WHERE scope IN (?, ?, ?)", scopes)}
            for scope in set(scopes) - known:
                before = self._before(scope) + amount
                self._db.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?)", (scope, *before.parts))

    def _abandon(self, name: str, session: str, key: str, amount: Amount, why: str) -> None:
        row = AbandonedRow(session, key, time.time(), amount.calls, amount.tokens, amount.usd, why, name)
        self._db.execute(INSERT["abandoned"], row)

    def _before(self, scope: str) -> Amount:
        """What was spent in a scope before this ledger charged anything: by an older version of r2v."""
        kind, rest = scope.split(" ", 1)
        values: tuple[Any, ...] = (rest,)
        where = "session = ?"
        if kind != "session":
            *key, day = rest.split(" ")
            since = int(day) * DAY
            where, values = f"time >= ? AND time < ?{' AND key = ?' if key else ''}", (since, since + DAY, *key)
        where += " AND time < (SELECT since FROM identity)"
        total = Amount()
        for calls, usd, table in (("teacher_calls", "slm_usd + teacher_usd", "steps"), ("calls", "usd", "abandoned")):
            sums = f"COALESCE(SUM({calls}), 0), COALESCE(SUM(tokens), 0), COALESCE(SUM({usd}), 0.0)"
            total += Amount(*self._db.execute(f"SELECT {sums} FROM {table} WHERE {where}", values).fetchone())
        return total
