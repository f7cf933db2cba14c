"""Ships the journal of this gateway to the shared ledger while it serves. No step waits for it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from pathlib import Path

from r2v.core.errors import R2VError, SettingsError
from r2v.gateway.ledger import Ledger
from r2v.gateway.postgres_link import OutOfReach, first_line
from r2v.gateway.settings import StoreSettings
from r2v.gateway.shared_ledger import SharedLedger
from r2v.runtime.slices import in_thread
from r2v.runtime.store import MALFORMED

EVERY_S = 0.25
"""Between shipments, unless more rows are waiting than one takes."""
AGAIN_S = 1.0
"""After a failure."""
REPORT_S = 5.0
"""How often a replica says that it lives, and looks whether the shared ledger still has what it shipped."""
FAILURES = (OSError, R2VError, sqlite3.Error, *MALFORMED)


class Shipping:
    """Of one gateway. Its methods may be called in any thread."""

    def __init__(self, store: StoreSettings, shared: SharedLedger) -> None:
        """Opens the journal, on a connection of its own. Raises ArtifactError."""
        self.shared, self._ledger, self._alone = shared, Ledger(Path(store.path)), store.redis_env is None
        self._path, self._lock, self._joined = store.path, threading.Lock(), False
        self._identity = ""
        self.caught_up = False
        """Whether there was a time since the start at which all rows had been shipped."""
        self._shipped, self._reported = time.monotonic(), -REPORT_S
        self.problem = ""
        """Why nothing can be shipped at present; empty where it can."""

    def join(self, ledger: Ledger) -> None:
        """Take part as a replica, when the gateway starts: also where the shared ledger is out of reach.

        Raises:
            SettingsError: it may not, or the server refuses.
            ArtifactError: the shared ledger is of another version.
        """
        try:
            self._join(ledger)
        except OutOfReach as error:
            self._note(error)
        except R2VError:
            self.close()
            raise

    def _join(self, ledger: Ledger) -> None:
        self.shared.prepare()
        self.shared.join(ledger.identity, alone=self._alone)
        self._joined = True

    @property
    def identity(self) -> str:
        """Of the shared ledger; empty until it has answered."""
        return self._identity

    def waiting(self) -> int:
        """How many rows of the journal have not been shipped."""
        journal = self._ledger.journal
        return sum(
            max(0, last - shipped) for last, shipped in zip(journal.last(), journal.cursor(self._identity), strict=True)
        )

    def seconds(self) -> float:
        """Since it was last seen that all rows are shipped."""
        return time.monotonic() - self._shipped

    def ship(self) -> bool:
        """Ship the next rows, if there are any. Returns whether more are waiting. Raises one of `FAILURES`."""
        with self._lock:
            ledger, replica = self._ledger, self._ledger.identity
            if not self._joined:
                try:
                    self._join(ledger)
                except SettingsError as error:  # it serves already: its rows are shipped all the same
                    self._joined = True
                    logging.getLogger("uvicorn.error").error("%s", error)
            behind = bool(self.waiting()) or not self._identity
            if time.monotonic() - self._reported > REPORT_S:
                identity, cursor = self.shared.report(replica)
                behind |= identity != self._identity or cursor != ledger.journal.cursor(identity)
                self._identity, self._reported = identity, time.monotonic()
            if behind:
                self._identity, _, _ = self.shared.ship(ledger.journal, replica)
            more = bool(self.waiting())
            if not more:
                self._shipped, self.caught_up = time.monotonic(), True
            return more

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                more = await in_thread(self.ship)
            except FAILURES as error:
                self._note(error)
                await asyncio.sleep(AGAIN_S)
                continue
            if self.problem:
                logging.getLogger("uvicorn.error").warning("the shared ledger %s is back", self.shared.name)
                self.problem = ""
            await asyncio.sleep(0 if more else EVERY_S)

    def finish(self, seconds: float) -> None:
        """Ship what is left, for so long at most, and leave. What remains goes when the gateway starts again, or by
        `r2v ship`.
        """
        limit = threading.Timer(seconds, self.shared.abort)
        limit.start()
        try:
            while self.ship():
                pass
            self.shared.leave(self._ledger.identity)
        except FAILURES as error:
            self._note(error)
        finally:
            limit.cancel()
        if left := self.waiting():
            line = "%d rows of %s are not shipped to %s: start the gateway again, or `r2v ship` it"
            logging.getLogger("uvicorn.error").warning(line, left, self._path, self.shared.name)

    def close(self) -> None:
        with self._lock:
            self.shared.close()
            self._ledger.close()

    def _note(self, error: Exception) -> None:
        why = "the shared ledger is out of reach" if isinstance(error, OSError) else "nothing can be shipped"
        line = f"{why} ({first_line(error)}); rows wait in {self._path}"
        if not self.problem:
            logging.getLogger("uvicorn.error").warning("%s", line)
        self.problem = line
