"""Parquet files of a run: how they are written, what is read of them, and which are damaged."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longattn.storage.digests import row_digest, sealed
from longattn.storage.tables import (
    LABELLED,
    METADATA_KEY,
    DamagedFileError,
    content_name,
    file_metadata,
    is_content_name,
    is_own,
    open_parquet,
    own_files,
    parquet_writer,
    read_row,
    readable,
    with_schema,
    write_table,
)
from tests.labelled import labelled_table

TABLE = labelled_table(
    "book", [f"b-{i}" for i in range(150)], [i / 150 for i in range(150)], [0.0] * 150
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    url = f"{tmp_path_factory.mktemp('tables')}/{content_name(TABLE['data_id'])}"
    tagged = TABLE.replace_schema_metadata({"of": "another program"})
    write_table(url, tagged, {"fingerprint": "f"})
    return url


def test_a_file_is_written_as_every_reader_takes_it(file):
    """pyarrow's own account of the file: what fastparquet and others need, and what keeps it small."""
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [64, 64, 22]
    columns = {
        groups[0].column(i).path_in_schema: groups[0].column(i) for i in range(metadata.num_columns)
    }
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    coded = {name for name, column in columns.items() if column.has_dictionary_page}
    assert coded == {"category", "source", "document_id"}
    told = {name for name, column in columns.items() if column.is_stats_set}
    assert told == {"data_id", "ds", "variance", "window_index", "recurrence"}
    assert metadata.metadata.keys() == {b"ARROW:schema", METADATA_KEY}
    assert pq.ParquetFile(file).read().replace_schema_metadata() == TABLE
    footer = metadata.metadata[METADATA_KEY]
    assert footer == json.dumps(json.loads(footer), sort_keys=True).encode()


def test_the_digest_of_several_tables_is_that_of_all_their_rows(tmp_path):
    with parquet_writer(tmp_path / "x.parquet", TABLE.schema, {"runs": ["r"]}) as writer:
        for start in range(0, 150, 40):
            writer.write_table(TABLE.slice(start, 40), row_group_size=30)
    with open_parquet(f"{tmp_path}/x.parquet") as parquet:
        told = file_metadata(parquet)
        assert told == {"runs": ["r"], "rows": 150, "digest": row_digest(TABLE).hex}
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    assert sizes == [30, 10] * 3 + [30]


def test_the_size_that_is_told_is_that_of_the_file(tmp_path):
    size = write_table(f"{tmp_path}/x.parquet", TABLE, {})
    assert size == (tmp_path / "x.parquet").stat().st_size


def test_one_wrong_bit_of_a_page_is_noticed(file, tmp_path):
    data = bytearray(open(file, "rb").read())  # noqa: PTH123, SIM115
    column = pq.read_metadata(file).row_group(1).column(LABELLED.names.index("ds"))
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    (tmp_path / "x.parquet").write_bytes(data)
    url = f"{tmp_path}/x.parquet"
    with (
        pytest.raises(DamagedFileError, match=rf"^{url}: cannot be read: [^\n]*CRC") as damaged,
        open_parquet(url) as parquet,
        readable(url),
    ):
        parquet.read()
    assert damaged.value.url == url and damaged.value.why.startswith("cannot be read: ")


def test_columns_come_as_dictionaries_where_asked(file):
    with open_parquet(file, ["category", "no such column"]) as parquet:
        table = parquet.read(["category", "source"])
    assert [pa.types.is_dictionary(column.type) for column in table.columns] == [True, False]
    assert table["category"].to_pylist() == ["book"] * 150


def test_what_is_no_parquet_file_is_damaged_and_what_is_not_there_is_not(tmp_path):
    for data in (b"", b"PAR1", b"no parquet file, but long enough for a footer of one"):
        (tmp_path / "x.parquet").write_bytes(data)
        with pytest.raises(DamagedFileError, match=r"x\.parquet: cannot be read: [^\n]+$"):
            open_parquet(f"{tmp_path}/x.parquet").__enter__()
    with pytest.raises(FileNotFoundError, match=r"none\.parquet"):
        open_parquet(f"{tmp_path}/none.parquet").__enter__()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (pa.ArrowInvalid("bad\n page"), DamagedFileError),
        (OSError("Unexpected end of stream"), DamagedFileError),  # as Arrow raises for broken pages
        (OSError(5, "Input/output error"), OSError),
        (FileNotFoundError("gone"), OSError),
        (TimeoutError("no answer"), OSError),
    ],
)
def test_errors_of_a_file_and_of_its_store_are_told_apart(error, kind):
    with (
        pytest.raises(kind, match=r"^http://\*\*\*@h/x: cannot be read: [^\n]+$") as caught,
        readable("http://me:pw@h/x"),
    ):
        raise error
    assert isinstance(caught.value, DamagedFileError) == (kind is DamagedFileError)
    assert caught.value.__cause__ is error


def test_a_row_by_its_number(file):
    for row in (0, 63, 64, 127, 128, 149):
        assert read_row(file, row) == TABLE.slice(row, 1).to_pylist()[0]
    assert read_row(file, 64, ["ds", "data_id"]) == {"ds": 64 / 150, "data_id": "b-64"}
    with pytest.raises(ValueError, match="it has no such row"):
        read_row(file, 150)


def test_files_of_other_programs_are_told_apart_by_their_footer(file, tmp_path):
    places = {name: f"{tmp_path}/{name}.parquet" for name in ("other", "ours", "broken", "a" * 32)}
    pq.write_table(TABLE, places["other"])
    write_table(places["ours"], TABLE, {})
    for name in ("broken", "a" * 32):
        (tmp_path / f"{name}.parquet").write_bytes(b"x" * 99)
    assert own_files([file, *places.values()]) == [file, *list(places.values())[1:]]
    with open_parquet(places["other"]) as parquet:
        assert file_metadata(parquet) == {}


@pytest.mark.parametrize(
    ("footer", "why"),
    [
        (b"{", "its footer is damaged: "),
        (b"[" * 100_000, "its footer is damaged: "),
        (b"[]", "its footer: damaged: a JSON object is required"),
        (json.dumps({**sealed({"rows": 1}), "rows": 2}).encode(), "its footer: damaged: it is not what"),
        *(
            (json.dumps(sealed({name: wrong})).encode(), f"its footer is damaged: {name} {wrong!r}"[:80])
            for name, wrong in {"rows": "1", "digest": 1, "fingerprint": None, "runs": "r",
                                "split": 5, "scored_on": ["gpu"], }.items()
        ),
        (json.dumps(sealed({"rows": "9" * 99})).encode(), f"its footer is damaged: rows '{'9' * 39}"),
    ],
)  # fmt: skip
def test_a_footer_that_is_not_what_was_put_there_is_refused(tmp_path, footer, why):
    table = pa.table({"n": [1]}).replace_schema_metadata({METADATA_KEY: footer})
    pq.write_table(table, tmp_path / "x.parquet")
    with open_parquet(f"{tmp_path}/x.parquet") as parquet, pytest.raises(ValueError) as refused:
        file_metadata(parquet)
    assert str(refused.value).startswith(why) and len(str(refused.value)) < 120


def test_which_columns_are_ours():
    ours = [
        *LABELLED.names,
        "lds",
        "ds_k64",
        "variance_k1",
        "split",
        "fingerprint",
        "scored_on",
        "scored_by",
    ]
    assert all(map(is_own, ours))
    assert not any(map(is_own, ["DS", "ds_k", "ds_kx", "my_ds", "ds_k64x", "id", "", "splits"]))


def test_a_table_gets_the_columns_of_a_schema():
    table = pa.table({"b": pa.array([1, 2], pa.int32()), "c": ["x", "y"]})
    schema = pa.schema([("a", pa.string()), ("b", pa.int64())])
    assert with_schema(table, schema) == pa.table({"a": [None, None], "b": [1, 2]}, schema=schema)


def test_names_of_contents():
    """A name must stay what it is: a split that is done again writes over its files."""
    name = content_name(pa.array(["a", "b"]), pa.array([1]))
    assert (
        name == "97b5fb38997119e9315ac4c5b01e3542.parquet"
    )  # `printf "['a', 'b'][1]" | b2sum -l 128`
    assert is_content_name(f"s3://b/out/labelled/x/{name}") and is_content_name(name)
    for other in (f"a{name}", name[1:], name.upper(), f"{name}.tmp", "x.parquet", f"{name}/x"):
        assert not is_content_name(other)
