"""The folder in which a task is worked on: made, copied, compared and removed.

Programs that nobody vouches for have written in it, so nothing here follows a link or opens what is not a plain file. While
one of these functions works, no such program runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from r2v.domains.terminal.shell import State, execute
from r2v.domains.terminal.tasks import TerminalTask

EPOCH = 1_704_067_200
"""2024-01-01: the time of every file of a start folder."""
SETUP_S = 30


def make_start(task: TerminalTask, folder: Path) -> None:
    """Fill an empty folder with what the task starts from; the same bytes, modes and times every time.

    Raises RuntimeError when the task's `setup.sh` fails.
    """
    given = task.folder / "files"
    if given.is_dir():
        shutil.copytree(given, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for path, about in _entries(folder):
        os.chmod(path, 0o755 if stat.S_ISDIR(about.st_mode) else 0o644)
    setup = task.folder / "setup.sh"
    if setup.exists():
        output, _ = execute(setup.read_text(), folder, State(), command_s=SETUP_S)
        if output.code != 0:
            raise RuntimeError(f"setup of terminal task {task.name} failed: {output.text.strip() or output.stopped}")
    for path, _ in _entries(folder):
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    os.utime(folder, (EPOCH, EPOCH))


def copy(folder: Path, to: Path) -> None:
    """Copy a folder with modes, times, links and pipes. `to` must not exist. Raises CalledProcessError."""
    subprocess.run(["cp", "-a", "--", folder, to], check=True, capture_output=True)


def fingerprint(folder: Path) -> str:
    """Hash of names, kinds, modes and contents. Left out are times, and git's index, which holds times."""
    digest = hashlib.sha256()
    for path, about in _entries(folder):
        relative = os.path.relpath(path, folder)
        digest.update(f"{relative}\0{about.st_mode:o}\0".encode(errors="surrogateescape"))
        if stat.S_ISLNK(about.st_mode):
            digest.update(os.readlink(path).encode(errors="surrogateescape"))
        elif stat.S_ISREG(about.st_mode) and not relative.endswith(".git/index"):
            digest.update(_content(path))
        digest.update(b"\0")
    return digest.hexdigest()


def _content(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except PermissionError:
        return b"unreadable"
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below the folder, sorted; links are entries, not ways."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = os.path.join(place, name)
            yield path, os.lstat(path)


def remove(folder: Path) -> None:
    """Delete a folder, directories that a program has locked included."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
