import struct
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from longattn.storage.digests import row_digest, row_hashes, sealed, unsealed
from longattn.storage.tables import LABELLED
from tests.labelled import labelled_table

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("n", pa.int32()),
        ("x", pa.float64()),
        ("y", pa.float32()),
        ("flag", pa.bool_()),
        ("ids", pa.list_(pa.int32())),
        ("u", pa.uint64()),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            "n": st.none() | st.integers(-(2**31), 2**31 - 1),
            "x": st.none() | st.floats(),
            "y": st.none() | st.floats(width=32),
            "flag": st.none() | st.booleans(),
            "ids": st.none() | st.lists(st.integers(0, 9), max_size=4),
            "u": st.none() | st.integers(0, 2**64 - 1),
        }
    ),
    max_size=6,
)


def by_the_words_of_the_module(rows) -> int:
    """The sum, as the docstring of the module says it."""
    total = 0
    for row in rows:
        words, last = b"", b""
        for name in SCHEMA.names:
            value = row[name]
            data = b""
            if value is None:
                words += bytes(9)
                continue
            if name == "text":
                data = value.encode()
            elif name == "ids":
                data = b"".join(struct.pack("<i", v) for v in value)
            if name in ("text", "ids"):
                word = struct.pack("<q", len(data))
            elif name == "x":
                word = struct.pack("<d", value)
            elif name == "y":
                word = struct.pack("<f", value) + bytes(4)
            else:
                word = struct.pack("<Q" if name == "u" else "<q", value)
            words += b"\1" + word
            last += data
        names = "".join(name + "\n" for name in SCHEMA.names).encode()
        total += xxhash.xxh3_128_intdigest(names + words + last)
    return total % 2**128


@given(ROWS, st.randoms())
def test_the_digest_is_what_its_definition_says_in_any_order(rows, random):
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert row_digest(table).hex == f"{by_the_words_of_the_module(rows):032x}"
    random.shuffle(rows)
    shuffled = pa.Table.from_pylist(rows, SCHEMA)
    parts = pa.concat_tables([shuffled.slice(0, 2), shuffled.slice(2)])
    assert row_digest(parts).hex == row_digest(table).hex


def test_slices_dictionaries_and_large_types_hash_as_what_they_hold():
    table = labelled_table("book", [f"b-{i}" for i in range(7)], np.arange(7.0), np.arange(7.0))
    whole = row_hashes(table)
    assert (row_hashes(table.slice(2, 3)) == whole[2:5]).all()
    assert len({tuple(h) for h in whole.tolist()}) == 7
    large = table.cast(
        pa.schema(
            [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in LABELLED]
        )
    )
    coded = table.set_column(3, "category", table["category"].dictionary_encode())
    assert (row_hashes(large) == whole).all() and (row_hashes(coded) == whole).all()


def test_types_of_users_columns_are_hashed():
    columns = {
        "d": pa.array([Decimal("1.5"), None, Decimal("2.5")], pa.decimal128(9, 2)),
        "t": pa.array([1, 2, None], pa.timestamp("us")),
        "s": pa.array([{"a": 1}, {"a": 2}, None]),
        "l": pa.array([["a"], ["b"], None]),
        "b": pa.array([b"x", b"", None]),
    }
    for name, column in columns.items():
        assert len({tuple(h) for h in row_hashes(pa.table({name: column})).tolist()}) == 3


def test_a_sealed_object_opens_only_as_it_was():
    value = sealed({"a": [1, {"b": 0.1}], "c": "é"})
    assert unsealed(value, "x") == {"a": [1, {"b": 0.1}], "c": "é"}
    with pytest.raises(ValueError, match=r"^x: damaged: it is not what"):
        unsealed({**value, "c": "e"}, "x")
    with pytest.raises(ValueError, match=r"^x: damaged: a JSON object is required"):
        unsealed([], "x")


def test_rows_of_a_slice_have_the_digest_of_the_same_rows_alone():
    """A slice shares the buffers of the whole: what stands before its offset is not its own."""
    table = pa.table(
        {
            "n": pa.array([*range(40)], pa.int32()),
            "x": np.arange(40) / 7,
            "text": [f"row {i}" for i in range(40)],
            "ids": pa.array([[i, i + 1] for i in range(40)], pa.list_(pa.int32())),
        }
    )
    part = table.slice(3, 5)
    alone = pa.table(part.to_pydict(), schema=table.schema)
    assert row_hashes(part).tolist() == row_hashes(alone).tolist()


def test_lists_of_part_of_an_array_and_arrays_without_offsets():
    """Arrow lets a list's values begin behind the first of their buffer, and an empty array have no offset."""
    numbers = pa.array([*range(10)], pa.int32())
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 5], pa.int32()), numbers.slice(4))
    whole = pa.array([[4, 5], [6, 7, 8]], pa.list_(pa.int32()))
    hashes = [row_hashes(pa.table({"ids": of})).tolist() for of in (lists, whole)]
    assert hashes[0] == hashes[1]
    nothing = pa.py_buffer(b"")
    empty = pa.Array.from_buffers(pa.string(), 0, [None, nothing, nothing])
    assert row_digest(pa.table({"text": empty})).hex == f"{0:032x}"
