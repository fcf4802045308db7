import struct
from datetime import date, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from longattn.storage.digests import row_digest, row_hashes, sealed, unsealed
from longattn.storage.tables import LABELLED
from tests.examples import examples
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
        ("small", pa.int8()),
        ("day", pa.date32()),
        ("span", pa.duration("ms")),
        ("price", pa.decimal128(9, 2)),
        ("raw", pa.large_binary()),
        ("xs", pa.large_list(pa.float64())),
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
            "small": st.none() | st.integers(-128, 127),
            "day": st.none() | st.dates(),
            "span": st.none()
            | st.integers(-(10**9), 10**9).map(lambda ms: timedelta(milliseconds=ms)),
            "price": st.none() | st.decimals(-(10**7) + 1, 10**7 - 1, places=2),
            "raw": st.none() | st.binary(max_size=4),
            "xs": st.none() | st.lists(st.floats(), max_size=3),
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
            if name in ("text", "raw"):
                data = value.encode() if name == "text" else value
            elif name in ("ids", "xs"):
                data = b"".join(struct.pack("<i" if name == "ids" else "<d", v) for v in value)
            elif name == "price":
                data = int(value * 100).to_bytes(16, "little", signed=True)
            elif name == "day":
                value = (value - date(1970, 1, 1)).days
            elif name == "span":
                value = value // timedelta(milliseconds=1)
            if name in ("text", "ids", "xs", "raw", "price"):
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


@settings(max_examples=examples(60))
@given(ROWS, st.randoms())
def test_the_digest_is_what_its_definition_says_in_any_order(rows, random):
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert row_digest(table).hex == f"{by_the_words_of_the_module(rows):032x}"
    random.shuffle(rows)
    shuffled = pa.Table.from_pylist(rows, SCHEMA)
    parts = pa.concat_tables([shuffled.slice(0, 2), shuffled.slice(2)])
    assert row_digest(parts).hex == row_digest(table).hex
    digest = row_digest(shuffled.slice(2))
    digest.add(shuffled.slice(0, 2))
    assert digest == row_digest(table) and digest.rows == len(rows)


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


def test_a_seal_stays_what_it_is_and_what_has_none_is_open():
    """`printf '{"a": "\\u00e9", "b": [1, 0.5]}' | b2sum -l 128`."""
    value = {"b": [1, 0.5], "a": "é"}
    assert sealed(value) == {**value, "checksum": "a9ed837657acc592749a5a4f499bd364"}
    assert sealed(sealed(value)) == sealed(value)
    assert unsealed(value, "x") == value


def test_what_a_null_slot_holds_does_not_count():
    """Arrow leaves the bytes below a null undefined: another writer has others there."""
    valid = pa.py_buffer(b"\x05")  # the second of three is null
    slots = {
        "n": (pa.int32(), [struct.pack("<3i", 1, 99, 3)], [1, None, 3]),
        "x": (pa.float64(), [struct.pack("<3d", 1, 99, 3)], [1.0, None, 3.0]),
        "flag": (pa.bool_(), [b"\x03"], [True, None, False]),
        "text": (pa.string(), [struct.pack("<4i", 0, 1, 4, 5), b"a???b"], ["a", None, "b"]),
        "price": (pa.decimal128(9, 2), [bytes(16) + b"\x63" * 16 + bytes(16)], [0, None, 0]),
    }
    for kind, buffers, values in slots.values():
        array = pa.Array.from_buffers(kind, 3, [valid, *map(pa.py_buffer, buffers)])
        clean = pa.array(values, kind)
        assert array.equals(clean)
        hashes = [row_hashes(pa.table({"x": of})).tolist() for of in (array, clean)]
        assert hashes[0] == hashes[1]
    numbers = pa.Array.from_buffers(
        pa.int32(), 3, [valid, pa.py_buffer(struct.pack("<3i", 1, 99, 3))]
    )
    lists = [
        pa.ListArray.from_arrays([0, 3], of) for of in (numbers, pa.array([1, None, 3], pa.int32()))
    ]
    one, other = (row_hashes(pa.table({"x": of})).tolist() for of in lists)
    assert one == other
    inner = pa.ListArray.from_arrays(
        [0, 1, 3, 4], pa.array([1, 9, 9, 3]), mask=pa.array([False, True, False])
    )
    one, other = (
        row_hashes(pa.table({"x": of})).tolist() for of in (inner, pa.array([[1], None, [3]]))
    )
    assert one == other


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
