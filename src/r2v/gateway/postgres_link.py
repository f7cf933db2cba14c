"""One connection to Postgres that many threads share, and that is made anew when it breaks."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from r2v.core.errors import ArtifactError, SettingsError
from r2v.gateway.postgres_url import shown

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]
PARAMETERS: dict[str, Any] = {
    "connect_timeout": "5", "application_name": "r2v", "client_encoding": "utf8", "keepalives_idle": "10",
    "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "10000",
}  # fmt: skip
"""Unless the URL says otherwise."""
TIMEOUTS = ("SET statement_timeout = '30s'", "SET lock_timeout = '20s'", "SET idle_in_transaction_session_timeout = '30s'")
AGAIN_S = 1.0
"""After a failure it is tried again no sooner: meanwhile nobody waits for it."""
WAIT_S, WAIT_FOR_CONNECTION_S = 10.0, 1.0
"""How long a thread waits for another that uses the connection, or makes it."""
BROKEN = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ReadOnlySqlTransaction,  # it has become a standby
    errors.IdleInTransactionSessionTimeout,
)


class OutOfReach(OSError):
    """The shared ledger does not answer, or not in time."""


def connect(url: str, *statements: str) -> Connection:
    """Raises psycopg.Error; SettingsError where Postgres takes no such URL, which is not repeated for what may be in it."""
    try:
        parameters: dict[str, Any] = PARAMETERS | {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.Error:
        raise SettingsError(f"the URL of {shown(url)} has parameters that Postgres does not know") from None
    # Statements are not prepared: the connections of a pooler would not have them.
    connection = psycopg.connect(**parameters, autocommit=True, prepare_threshold=None)
    for statement in statements:
        connection.execute(statement)
    return connection


def is_refusal(error: Exception) -> bool:
    """Whether the server answered and said no (a wrong password, no such database), not that it is starting or full."""
    text = str(error)
    return "FATAL" in text and not any(
        word in text
        for word in ("starting up", "shutting down", "recovery", "too many", "remaining connection", "terminating")
    )


class Link:
    def __init__(self, url: str, *statements: str) -> None:
        """`statements`: what each new connection begins with."""
        self._url, self._statements, self._lock = url, (*TIMEOUTS, *statements), threading.Lock()
        self._connection: Connection | None = None
        self._failed, self._problem, self._aborted = -AGAIN_S, "", False

    def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of the connection. It is called again where the connection had broken since its last use.

        Raises:
            OutOfReach: Postgres does not answer.
            ArtifactError: it does not do what it is asked.
        """
        if not self._lock.acquire(timeout=WAIT_S if self._connection else WAIT_FOR_CONNECTION_S):
            raise OutOfReach(self._problem or f"{shown(self._url)} does not answer in time")
        try:
            if time.monotonic() - self._failed < AGAIN_S:
                raise OutOfReach(self._problem)
            used = self._connection is not None
            try:
                return work(self._connected())
            except BROKEN as error:
                self.drop()
                if not used or isinstance(error, errors.QueryCanceled):
                    raise
            return work(self._connected())
        except BROKEN as error:
            self.drop()
            self._failed, self._problem = time.monotonic(), f"{shown(self._url)}: {first_line(error)}"
            raise OutOfReach(self._problem) from error
        except psycopg.Error as error:
            raise ArtifactError(f"{shown(self._url)}: {first_line(error)}") from error
        finally:
            self._lock.release()

    def _connected(self) -> Connection:
        if self._aborted:
            raise OutOfReach(f"{shown(self._url)} does not answer, and the gateway ends")
        if self._connection is None:
            self._connection = connect(self._url, *self._statements)
        return self._connection

    def abort(self) -> None:
        """End what is being done, whichever thread does it, and do nothing more: a server may hang."""
        self._aborted = True
        connection = self._connection
        with suppress(OSError, psycopg.Error):  # it may have ended
            if connection is not None:
                with socket.socket(fileno=os.dup(connection.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
