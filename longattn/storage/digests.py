"""Digests that prove what is stored: of rows, in any order, and of JSON records.

A row's hash is XXH3 (128 bits, no seed) of these bytes, one after another:
    the names of its columns in their order, each ended by a newline;
    for each column a byte, 1 or 0 for null, and eight bytes little-endian: an integer, boolean, date
    or time sign-extended, a float's own bits zero-extended; of text, binary, decimals and lists their
    length in bytes; zero for null;
    for each of those last the bytes themselves: UTF-8, or a list's values little-endian.
The digest of rows is how many they are, and the sum of their hashes modulo 2^128 in 32 hex digits: the
same for the same rows in any order and any files. It guards against damage, not against forgers.

A sealed JSON object has one more key, `checksum`: 32 hex digits of BLAKE2b over the others, as JSON
with sorted keys. Both cost little: 0.05 ms for a row of 32K tokens, where writing it takes 1.9 ms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

CHECKSUM = "checksum"
"""The key of a sealed object that holds its seal."""


@dataclass
class RowDigest:
    """How many rows, and the sum of their hashes: equal for equal rows in any order."""

    rows: int = 0
    total: int = 0

    def add(self, table: pa.Table) -> None:
        hashes = row_hashes(table)
        self.rows += len(hashes)
        # Sums of 32-bit halves are exact in uint64, for 2^32 rows at a time.
        halves = hashes.view(np.uint32).reshape(len(hashes), 4).sum(axis=0, dtype=np.uint64)
        self.total += sum(int(half) << 32 * place for place, half in enumerate(halves))
        self.total %= 2**128

    @property
    def hex(self) -> str:
        return f"{self.total:032x}"


def row_digest(table: pa.Table) -> RowDigest:
    """The digest of the rows of a table."""
    digest = RowDigest()
    digest.add(table)
    return digest


def row_hashes(table: pa.Table) -> NDArray[np.uint64]:
    """The hash of each row: (rows, 2), low half first."""
    n = len(table)
    fixed = np.zeros((n, len(table.column_names), 9), np.uint8)
    varying: list[tuple[memoryview, list[int]]] = []
    for place, column in enumerate(table.columns):
        array = _plain(column)
        valid = np.ones(n, bool)
        if array.null_count:
            valid = array.is_valid().to_numpy(zero_copy_only=False)
        fixed[:, place, 0] = valid
        if pa.types.is_primitive(array.type):
            words = np.where(valid, _words(array), np.uint64(0))
        else:
            data, offsets = _bytes(array, valid)
            varying.append((data, offsets.tolist()))
            words = np.diff(offsets).astype(np.uint64)
        fixed[:, place, 1:] = words.astype("<u8").view(np.uint8).reshape(n, 8)
    names = "".join(f"{name}\n" for name in table.column_names).encode()
    beginning, width = fixed.tobytes(), 9 * len(table.column_names)
    digests = []
    named = xxhash.xxh3_128(names)
    for row in range(n):
        digest = named.copy()
        digest.update(beginning[row * width : (row + 1) * width])
        for data, offsets_l in varying:
            digest.update(data[offsets_l[row] : offsets_l[row + 1]])
        digests.append(digest.digest()[::-1])  # xxhash gives the high byte first
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64).reshape(n, 2)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """A column as numbers, text, binary or lists of numbers, in one piece of its own: no offset."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no chunk, or of more than an array can hold
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], kind)
    known = pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or _is_bytes(kind)
    if known or (_is_list(kind) and pa.types.is_primitive(kind.value_type)):
        return array
    return pa.array([None if v is None else repr(v) for v in array.to_pylist()], pa.large_string())


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _words(array: pa.Array) -> NDArray[np.uint64]:
    """Values of a primitive array, eight bytes each; what null holds is undefined."""
    kind = array.type
    if pa.types.is_boolean(kind):
        bits: NDArray[np.uint64] = (
            array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint64)
        )
        return bits
    width = kind.bit_width // 8
    sign = "u" if pa.types.is_floating(kind) or pa.types.is_unsigned_integer(kind) else "i"
    values = np.frombuffer(array.buffers()[1] or b"", f"<{sign}{width}")
    return values[: len(array)].astype(np.int64).view(np.uint64)


def _bytes(array: pa.Array, valid: NDArray[np.bool_]) -> tuple[memoryview, NDArray[np.int64]]:
    """The bytes of text, binary, decimals or lists, and (rows + 1,) where each row's begin."""
    n, kind = len(array), array.type
    if pa.types.is_decimal(kind):
        width = kind.bit_width // 8
        offsets = np.arange(n + 1, dtype=np.int64) * width
        data = memoryview(array.buffers()[1] or b"")
    else:
        size = "<i8" if kind in (pa.large_string(), pa.large_binary()) else "<i4"
        size = "<i8" if pa.types.is_large_list(kind) else size
        starts = np.frombuffer(array.buffers()[1], size)[: n + 1]
        if _is_list(kind):
            values = array.values
            if values.null_count:
                values = values.fill_null(0)
            width = values.type.bit_width // 8
            data = memoryview(values.buffers()[1] or b"")
            offsets = starts.astype(np.int64) * width
        else:
            data, offsets = memoryview(array.buffers()[2] or b""), starts.astype(np.int64)
    if valid.all():
        return data, offsets
    # Of null no byte counts, whatever its slot holds.
    lengths = np.where(valid, np.diff(offsets), 0)
    kept = b"".join(
        bytes(data[start : start + length])
        for start, length in zip(offsets[:-1].tolist(), lengths.tolist(), strict=True)
    )
    return memoryview(kept), np.concatenate([[0], np.cumsum(lengths)])


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum."""
    open_ = {key: of for key, of in value.items() if key != CHECKSUM}
    return {**open_, CHECKSUM: json_checksum(open_)}


def unsealed(value: Any, where: str) -> dict[str, Any]:
    """A sealed object without its checksum.

    Raises ValueError naming `where` for what is no object, or not what was sealed.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: damaged: a JSON object is required")
    open_ = {key: of for key, of in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != json_checksum(open_):
        raise ValueError(f"{where}: damaged: it is not what its checksum was taken of")
    return open_


def json_checksum(value: Any) -> str:
    """32 hex digits of BLAKE2b over a JSON value with sorted keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()
