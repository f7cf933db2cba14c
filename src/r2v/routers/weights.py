"""Reads and writes `weights.safetensors` with NumPy alone: 8 bytes of header length, a JSON header, raw numbers.

{"w0": {"dtype": "F32", "shape": [15, 128], "data_offsets": [0, 7680]}, ...}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from r2v.core.errors import ArtifactError
from r2v.core.protocols import Floats


def to_bytes(arrays: Mapping[str, Floats]) -> bytes:
    header, blobs, at = {}, [], 0
    for name, array in arrays.items():
        blob = np.ascontiguousarray(array, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(blobs)


def from_file(path: Path) -> dict[str, Floats]:
    """Raises ArtifactError when the file is missing or is not exactly such a file of finite F32 arrays."""
    try:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        arrays, used = {}, 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            low, high = entry["data_offsets"]
            if entry["dtype"] != "F32" or high - low != 4 * math.prod(entry["shape"]) or high > len(body) or low < 0:
                raise ValueError(f"array {name} does not fit its description")
            arrays[name] = np.frombuffer(body[low:high], dtype="<f4").astype(np.float64).reshape(entry["shape"])
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
