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
ORPHANED = 5
"""After so many times that a process without its parent gives up by itself."""
PROGRAM = """
import faulthandler, json, os, sys
CODE
nowhere = open(os.devnull, "w")
print("ready", flush=True)
for line in sys.stdin:
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=nowhere)
    print(json.dumps(answer(*json.loads(line))), flush=True)
    faulthandler.cancel_dump_traceback_later()
"""
_all: weakref.WeakSet[Aside] = weakref.WeakSet()


class Aside:
    """Answers questions in a process that is ended where an answer takes too long, and started again for the next one."""

    def __init__(self, code: str, seconds: float = SECONDS) -> None:
        """
        Args:
            code: of a function `answer`, with its imports; what it takes and gives is JSON.
            seconds: after which an answer is given up.
        """
        self.program = PROGRAM.replace("SECONDS", str(ORPHANED * seconds)).replace("CODE", code)
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        _all.add(self)

    def ask(self, *question: Any) -> Any:
        """What `answer` says to these arguments; None where there is none in time."""
        with self._lock:
            try:
                if self._process is None or self._owner != os.getpid():  # after a fork it is the parent's
                    self._process = subprocess.Popen(
                        [sys.executable, "-I", "-c", self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
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
