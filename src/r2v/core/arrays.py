"""Reads and writes `.safetensors` files with NumPy alone: 8 bytes of header length, a JSON header, raw numbers.

{"risk.layers.0.0": {"dtype": "F32", "shape": [15, 128], "data_offsets": [0, 7680]}, ...}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from r2v.core.errors import ArtifactError
from r2v.core.untrusted import ROUTER_BYTES, parsed_json, read_bytes
from r2v.maths import Floats

DTYPES = {"F32": "<f4", "F64": "<f8"}
HEADER_BYTES = 1 << 20
"""Of the header: the router with the most arrays needs some kB."""
Length = Annotated[int, Meta(ge=0, le=ROUTER_BYTES)]


class _Described(msgspec.Struct):
    """An array as the header has it."""

    dtype: Literal["F32", "F64"]
    shape: Annotated[tuple[Length, ...], Meta(max_length=8)]
    data_offsets: tuple[Length, Length]


def to_bytes(arrays: Mapping[str, Floats]) -> bytes:
    """Numbers that single precision holds exactly are written in it, others in double precision: nothing is rounded."""
    header, blobs, at = {}, [], 0
    for name, array in arrays.items():
        kind = "F32" if np.array_equal(array, np.asarray(array, dtype="<f4")) else "F64"
        blob = np.ascontiguousarray(array, dtype=DTYPES[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(np.shape(array)), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(blobs)


def from_file(path: Path) -> dict[str, Floats]:
    """Raises ArtifactError when the file is missing or is not exactly such a file of finite arrays, in its own folder."""
    try:
        data = read_bytes(path, ROUTER_BYTES, within=path.parent)
        size = int.from_bytes(data[:8], "little")
        if size > HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes, the limit is {HEADER_BYTES}")
        header, body = parsed_json(data[8 : 8 + size]), data[8 + size :]
        header.pop("__metadata__", None)
        arrays, used = {}, 0
        for name, entry in msgspec.convert(header, dict[str, _Described]).items():
            low, high = entry.data_offsets
            dtype = np.dtype(DTYPES[entry.dtype])
            if high - low != dtype.itemsize * math.prod(entry.shape) or high > len(body):
                raise ValueError(f"array {name} does not fit its description")
            arrays[name] = np.frombuffer(body[low:high], dtype=dtype).astype(np.float64).reshape(entry.shape)
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"array {name} holds NaN or infinite numbers")
            used += high - low
        if used != len(body):
            raise ValueError(f"{len(body)} bytes of numbers where the header describes {used}")
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; a router folder needs it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is corrupt ({error}); fit the router again") from None
    return arrays
