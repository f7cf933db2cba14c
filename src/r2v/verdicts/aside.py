"""A process beside this one for what may take for ever on some text, and what Python cannot stop: searches, schemas."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import msgspec

SECONDS = 1.0
"""For one answer; what is asked of it finds its way in a thousandth of that."""
START_S = 30.0
_all: weakref.WeakSet[Aside] = weakref.WeakSet()


class Aside:
    """Answers questions in a process that is ended where an answer takes too long, and started again for the next one."""

    def __init__(self, code: str, seconds: float = SECONDS) -> None:
        """
        Args:
            code: of a program that writes a line when it is ready, and then for each line of JSON one line of JSON.
            seconds: after which an answer is given up.
        """
        self._code, self.seconds = code, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        _all.add(self)

    def ask(self, question: Any) -> Any:
        """The answer; None where there is none in time."""
        with self._lock:
            try:
                if self._process is None or self._owner != os.getpid():  # after a fork it is the parent's
                    self._process = subprocess.Popen(
                        [sys.executable, "-I", "-c", self._code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                    )
                    self._owner = os.getpid()
                    self._line(self._process, START_S)
                assert self._process.stdin is not None
                self._process.stdin.write(msgspec.json.encode(question) + b"\n")
                self._process.stdin.flush()
                return msgspec.json.decode(self._line(self._process, self.seconds))
            except (OSError, msgspec.DecodeError):  # it was ended, or cannot be started
                self._end()
                return None

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """Its next line; empty where it took too long and was ended."""
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            return process.stdout.readline()
        finally:
            timer.cancel()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()


@atexit.register
def _end_all() -> None:
    for aside in list(_all):
        aside._end()
