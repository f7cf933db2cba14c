"""A real Postgres that is thrown away: one cluster for each process that runs tests, a database for each test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path

import psycopg

from r2v.gateway.shared_ledger import SharedLedger

KEPT = 40
"""Databases of a cluster: each takes 8 MB."""
QUICK = {
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
}
"""What a test can do without: nothing outlasts it."""


def programs() -> Path | None:
    """Folder of the programs of the newest Postgres on this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Postgres:
    """A cluster on a port of 127.0.0.1. The user `postgres` owns it where this process is root's, which Postgres refuses."""

    def __init__(self, **options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="r2v-pg-"))
        self.data, self.port, self._options = self.folder / "data", free_port(), QUICK | options
        self._numbers, self.process = count(1), None
        self._as = ["setpriv", "--pdeathsig", "KILL"]  # it ends with this process
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self._as += ["--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"
        )
        self.start()

    def _command(self, program: str, *arguments: str) -> list[str]:
        folder = programs()
        assert folder is not None, "Postgres is not installed"
        return [*self._as, str(folder / program), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments), capture_output=True, text=True, cwd=self.folder, check=False
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        options = [part for name, value in self._options.items() for part in ("-c", f"{name}={value}")]
        where = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}", "-p", str(self.port)]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self._command("postgres", "-D", str(self.data), *where, *options), stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, as a crash; SIGINT: connections are closed first."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait()

    def follow(self, primary: Postgres) -> None:
        """Become the streaming standby of another cluster, with a copy of its data."""
        self.stop()
        shutil.rmtree(self.data)
        self._run("pg_basebackup", "-D", str(self.data), "-R", "-c", "fast", "-d", primary.url("postgres"))
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @cache  # noqa: B019 - there is one cluster
    def template(self) -> str:
        """A database with the schema, which copies of are made in some milliseconds."""
        self.execute("CREATE DATABASE made")
        shared = SharedLedger(self.url("made"))
        shared.prepare()
        shared.close()
        return "made"

    def database(self) -> str:
        """URL of a new shared ledger without rows. Only the latest `KEPT` stay."""
        number = next(self._numbers)
        name = f"r2v{number}"
        self.execute(f"DROP DATABASE IF EXISTS r2v{max(0, number - KEPT)} WITH (FORCE)")
        self.execute(f"CREATE DATABASE {name} TEMPLATE {self.template()}")
        self.execute("UPDATE identity SET id = replace(CAST(gen_random_uuid() AS TEXT), '-', '')", name)
        return self.url(name)


@cache
def cluster() -> Postgres:
    """That of this process; tests/conftest.py removes it."""
    return Postgres()


def remove_cluster() -> None:
    if cluster.cache_info().currsize:
        cluster().remove()
