"""Rows of Parquet files that somebody else may have written: what they unpack to is limited before and while it is decoded.

A file of some kB can hold gigabytes: one long text in a dictionary that all rows refer to, or pages of zeros. The file's own
description may lie about it, so the headers of the pages, by which memory is taken, are read first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import MB, VALUES, opened, unpacked_limit

COLUMNS, ROWS = 1_000, 10_000_000
BATCH_ROWS, BATCH_BYTES = 256, 64 * MB
"""Of what is decoded at once. No value is longer than its whole row group, so that many rows take no more."""
THRIFT_ITEMS = 10_000
"""Of each list in the file's description: its row groups, or the parts of its schema, which lie inside each other."""
WINDOW = 1 << 16
"""Bytes that are read to find a page's header, which may hold the page's least and greatest value."""


def columns_of(path: Path) -> list[str]:
    """The names of the columns. Raises ArtifactError."""
    with _parquet(path) as (found, _):
        return list(found.schema_arrow.names)


def marks_of(path: Path) -> dict[bytes, bytes]:
    """The key-value pairs that the writer put beside the columns. Raises FileNotFoundError, ArtifactError."""
    with _parquet(path) as (found, _):
        return dict(found.schema_arrow.metadata or {})


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows one by one, with these columns.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: it is no Parquet, lacks a column, or unpacks to more than recorded sessions do.
    """
    with _parquet(path) as (found, file):
        if missing := set(columns) - set(found.schema_arrow.names):
            raise ArtifactError(f"{path} has no column {min(missing)}; write the file again")
        most = unpacked_limit(os.fstat(file.fileno()).st_size)
        claimed = decoded = values = 0
        for group in range(found.num_row_groups):
            about = found.metadata.row_group(group)
            chunks = [about.column(i) for i in range(about.num_columns)]
            size = 0
            for chunk in chunks:
                if chunk.path_in_schema.split(".")[0] in columns:
                    unpacked, held = _pages(file, chunk)
                    size += max(unpacked, chunk.total_uncompressed_size)
                    values += max(held, chunk.num_values)
            claimed += size
            _limit(path, claimed, most)
            if values > VALUES:
                raise ArtifactError(f"{path} holds more than {VALUES} values, the most that r2v reads of such a file")
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))
            for batch in found.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False):
                _limit(path, decoded + batch.nbytes, most)
                for row in batch.to_pylist():  # a text that many rows share becomes one of each
                    decoded += _size(row)
                    _limit(path, decoded, most)
                    yield row


def _size(value: Any) -> int:
    """About the bytes of a row's texts and numbers."""
    if isinstance(value, (str, bytes)):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 8 + sum(map(_size, inner))


def _limit(path: Path, size: int, most: int) -> None:
    if size > most:
        raise ArtifactError(f"{path} unpacks to more than {most // MB} MB, the most that r2v takes from a file of its size")


@contextmanager
def _parquet(path: Path) -> Iterator[tuple[Any, IO[bytes]]]:
    """The open file; what is wrong with it, and with what is read of it, is one ArtifactError."""
    import pyarrow as pa  # here, because serving and deciding do without it
    import pyarrow.parquet as pq

    with opened(path) as file:
        try:
            found = pq.ParquetFile(file, thrift_string_size_limit=64 * MB, thrift_container_size_limit=THRIFT_ITEMS)
            if found.metadata.num_columns > COLUMNS or found.metadata.num_rows > ROWS:
                raise ArtifactError(f"{path} has more than {COLUMNS} columns or {ROWS} rows, the most that r2v reads")
            yield found, file
        except (OSError, ValueError, IndexError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArtifactError(f"{path} cannot be read, it is corrupt ({reason}); write it again") from None


def _pages(file: IO[bytes], chunk: Any) -> tuple[int, int]:
    """(bytes, values) that the pages of a column chunk say they unpack to. Raises ValueError, IndexError."""
    offsets = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
    at = min(offset for offset in offsets if offset)
    end = at + chunk.total_compressed_size
    size = values = 0
    while at < end:
        header, length = _header(file, at, end - at)
        unpacked, packed = header.get(2), header.get(3)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or min(unpacked, packed) < 0:
            raise ValueError("a page without sizes")
        about: Any = next((header[key] for key in (5, 7, 8) if key in header), {})
        held = about.get(1, 0) if isinstance(about, dict) else 0
        size, values = size + unpacked, values + max(0, held)
        at += length + packed
    return size, values


def _header(file: IO[bytes], at: int, most: int) -> tuple[dict[int, Any], int]:
    """The fields of the page header at an offset, and its length."""
    for window in (min(WINDOW, most), most):
        file.seek(at)
        data = file.read(window)
        try:
            return _struct(data, 0)
        except IndexError:
            continue
    raise ValueError("a page header is cut off")


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol: {field: number or struct}, and where it ends. Raises IndexError, ValueError."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _varint(data, at)
            number = (number >> 1) ^ -(number & 1)
        if kind in (4, 5, 6):
            value, at = _varint(data, at)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind == 12 and depth < 4:
            fields[number], at = _struct(data, at, depth + 1)
        elif kind not in (1, 2):  # a truth value is in its kind; page headers hold nothing else
            raise ValueError("a page header of an unknown form")
    return fields, at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of a page header is too long")
