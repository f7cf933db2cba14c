"""The process that starts sandboxed programs for this one; it is started when first needed and ends with this one."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

from r2v.runtime.sandbox import stage

_lock = threading.Lock()
_warden: Warden | None = None


class Warden:
    def __init__(self) -> None:
        # Whole messages, so that threads and forked children may share the socket.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = os.path.realpath(sys.executable)
        with theirs:
            self._process = subprocess.Popen(
                [python, "-I", "-S", stage.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={},
            )
        self._owner = os.getpid()

    def send(self, descriptors: Sequence[int]) -> None:
        """Raises OSError when the process is gone."""
        socket.send_fds(self._socket, [b"!"], descriptors)

    def close(self) -> None:
        self._socket.close()
        if os.getpid() == self._owner:  # in a forked child the process is not ours to wait for
            self._process.wait()


def send(descriptors: Sequence[int]) -> None:
    """Hand a request to the warden. One that was killed is replaced once."""
    global _warden
    with _lock:
        if _warden is None:
            _warden = Warden()
            atexit.register(lambda: _warden.close() if _warden else None)
        try:
            _warden.send(descriptors)
        except (BrokenPipeError, ConnectionResetError):
            _warden.close()
            _warden = Warden()
            _warden.send(descriptors)
