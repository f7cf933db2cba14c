"""The process that starts sandboxed programs for this one; it is started when first needed and ends with this one."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_lock = threading.Lock()
_server: SpawnServer | None = None


class SpawnServer:
    def __init__(self) -> None:
        # Whole messages, so that threads and forked children may share the socket.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = Path(__file__).with_name("supervisor.py")
        with theirs:
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", script, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, env={},
            )  # fmt: skip
        self._owner = os.getpid()

    def send(self, descriptors: Sequence[int]) -> None:
        """Raises OSError when the process is gone."""
        socket.send_fds(self._socket, [b"!"], descriptors)

    def close(self) -> None:
        self._socket.close()
        if os.getpid() == self._owner:  # in a forked child the process is not ours to wait for
            self._process.wait()


def send(descriptors: Sequence[int]) -> None:
    """Hand a request to the server. One that was killed is replaced once."""
    global _server
    with _lock:
        if _server is None:
            _server = SpawnServer()
            atexit.register(lambda: _server.close() if _server else None)
        try:
            _server.send(descriptors)
        except (BrokenPipeError, ConnectionResetError):
            _server.close()
            _server = SpawnServer()
            _server.send(descriptors)
