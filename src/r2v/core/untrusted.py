"""Opens and decodes files that somebody else may have written: router folders, logs, certificates, settings.

A file must be a regular one, so that no device or pipe is read for ever. Its size is limited before and while it is read,
what it unpacks to is limited in bytes, and what it decodes to in values and depth. All that fails is one ArtifactError.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
import os
import stat
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from r2v.core.errors import ArtifactError

KB, MB = 1 << 10, 1 << 20
ROUTER_BYTES = 64 * MB
"""Of each file of a router or localiser folder: the one that comes with r2v takes 0.4 MB."""
RECORD_BYTES = 64 * MB
"""Of other JSON files of runs, certificates and outcomes, and of one record of a log: the longest sessions take a few MB."""
LOG_BYTES = 256 * MB
"""Of a log that is one JSON value and is held as a whole; JSON lines may be longer, since they are read one by one."""
UNPACKED_BYTES, UNPACKED_TIMES = 256 * MB, 100
"""What a packed file may unpack to: so much, or so many times its own size. Recorded sessions pack 5 to 50 times."""
OTHERWISE_PACKED = {".bz2", ".zst", ".zip", ".7z", ".tar", ".tgz", ".txz"}
VALUES = 20_000_000
"""JSON values of one file: as Python objects each takes some 100 bytes."""
DEPTH = 100
"""JSON values inside each other: beyond some hundreds Python's own functions give up."""
DIGITS = 300
"""Of an integer: more is no number that a float can hold."""


def check_regular(path: Path) -> None:
    """Raise ArtifactError where there is something else than a regular file; it is not opened.

    For databases that this process may have open already: closing any descriptor of the file drops the locks of all.
    """
    try:
        regular = not path.exists() or stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path} cannot be read ({reason}); give a readable file") from None
    if not regular:
        raise ArtifactError(f"{path} is no regular file; copy what it holds into one")


def opened(path: Path, limit: int | None = None, within: Path | None = None) -> IO[bytes]:
    """Open a regular file for reading.

    Args:
        path: the file.
        limit: the most bytes that it may have; None: any number, for files that are read piece by piece.
        within: the folder that it must lie in once links are followed.

    Raises:
        FileNotFoundError: it does not exist.
        ArtifactError: it is no regular file, too long, outside of `within`, or not readable.
    """
    try:
        # Without O_NONBLOCK a pipe that nobody writes to is waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path} cannot be read ({reason}); give a readable file") from None
    about = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(about.st_mode):
        problem = "is no regular file; copy what it holds into one"
    elif limit is not None and about.st_size > limit:
        problem = _too_long(limit)
    elif within is not None and not path.resolve().is_relative_to(within.resolve()):
        problem = f"links out of {within}; put the file itself there"
    if problem is not None:
        os.close(descriptor)
        raise ArtifactError(f"{path} {problem}")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int, within: Path | None = None) -> bytes:
    """All of a regular file. See `opened` for arguments and errors."""
    with opened(path, limit, within) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it has grown meanwhile, or is one that tells no size
        raise ArtifactError(f"{path} {_too_long(limit)}")
    return data


def _too_long(limit: int) -> str:
    size = f"{limit // MB} MB" if limit >= MB else f"{limit // KB} kB"
    return f"is longer than {size}, the most that r2v reads of such a file"


def unpacked_lines(path: Path, longest: int = RECORD_BYTES) -> Iterator[str]:
    """The lines of a text file one by one, unpacked if its name ends in .gz or .xz.

    Args:
        path: the file; JSON lines of any size are read without holding them.
        longest: the most bytes of a line.

    Raises:
        FileNotFoundError: it does not exist.
        ArtifactError: it cannot be read, a line is too long, or it unpacks to more than a log would.
    """
    if path.suffix in OTHERWISE_PACKED or path.suffixes[-2:-1] == [".tar"]:
        raise ArtifactError(f"{path} cannot be read: only .gz and .xz are unpacked, and no archives; unpack it first")
    openers: dict[str, Callable[[IO[bytes]], Any]] = {".xz": lzma.open, ".gz": gzip.open}
    opener = openers.get(path.suffix)
    with opened(path) as packed:
        most = math.inf if opener is None else unpacked_limit(os.fstat(packed.fileno()).st_size)
        read = number = 0
        try:
            with packed if opener is None else opener(packed) as stream:
                while line := stream.readline(longest + 1):
                    if number == 0:
                        line = line.removeprefix(BOM_UTF8)
                    number += 1
                    read += len(line)
                    if len(line) > longest:
                        raise ArtifactError(f"{path} has a line of more than {longest // MB} MB; split or mend it")
                    if read > most:
                        raise ArtifactError(f"{path} unpacks to more than {most // MB:g} MB; unpack it if you trust it")
                    yield _text(line)
        except UnicodeDecodeError:
            raise ArtifactError(f"{path}:{number} cannot be read: it is not in UTF-8; convert the file to UTF-8") from None
        except (OSError, lzma.LZMAError, zlib.error, EOFError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); copy or write it again") from None


def _text(line: bytes) -> str:
    """A line as text; without its last character where the file ends amid it, as one of a killed writer may."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise
        return line[: error.start].decode("utf-8")


def unpacked_limit(packed: int) -> int:
    """The bytes that a packed file of so many bytes may unpack to."""
    return max(UNPACKED_BYTES, UNPACKED_TIMES * packed)


def parsed_json(text: str | bytes, *, exact: bool = True) -> Any:
    """JSON as Python values, of bounded number and depth.

    Args:
        text: JSON.
        exact: refuse keys that occur twice, NaN and numbers too large for a float: what r2v writes has none. Logs of other
            programs may have them.

    Raises:
        ValueError: it is no JSON, or more or deeper than any of r2v's files.
    """
    marks = ",[{" if isinstance(text, str) else (b",", b"[", b"{")
    if sum(map(text.count, marks)) > VALUES:  # type: ignore[arg-type]
        raise ValueError(f"more than {VALUES} values")
    hooks: dict[str, Any] = {}
    if exact:
        hooks = {"object_pairs_hook": _each_once, "parse_constant": _finite, "parse_float": _finite, "parse_int": _integer}
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH}") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):  # Python's own limit
            raise ValueError("an integer of thousands of digits") from None
        raise
    check_depth(value)
    if exact and (r"\ud" if isinstance(text, str) else rb"\ud") in text:  # type: ignore[operator]
        json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be printed or written
    return value


def check_depth(root: Any, children: Callable[[Any], Iterable[Any]] | None = None, values: int = VALUES) -> None:
    """Check that a tree is small enough for recursive functions; what it holds twice counts twice.

    Args:
        root: of JSON, or the root node of another tree.
        children: what another tree's node holds.
        values: how many there may be.

    Raises:
        ValueError: it is too deep, or has too many values.
    """
    level, seen = [root], 0
    for _ in range(DEPTH):
        inner: list[Any] = []
        for one in level:
            inner += _inside(one) if children is None else children(one)
            if seen + len(inner) > values:
                raise ValueError(f"more than {values} values")
        seen += len(inner)
        level = inner
        if not level:
            return
    raise ValueError(f"nested deeper than {DEPTH}")


def _inside(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()


def read_json(path: Path, limit: int = RECORD_BYTES, within: Path | None = None) -> Any:
    """A JSON file that r2v has written. Raises FileNotFoundError, ArtifactError, ValueError where it is no such JSON."""
    return parsed_json(read_bytes(path, limit, within))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in found if names.count(name) > 1)!r} occurs twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)
