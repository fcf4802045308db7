"""A file of a few bytes that asks for gigabytes, or for hours, costs one bad record.

Each is read in a process whose address space is limited, so that what it asks for is not to be had.
"""

import itertools
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from longattn.corpus import archives
from longattn.corpus.arrow_columns import Unreadable, require_plausible
from tests.corpus.files import jsonl, parquet, put, read, reasons, texts

CAP = 16 << 20
READ = """
import json, resource, sys
from longattn.corpus.reading import read_split
from tests.corpus.files import reasons, splits_of
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[3:]:
    bad, texts = [], 0
    for item in read_split(splits_of(file)[0], max_record_bytes=int(sys.argv[2])):
        texts += hasattr(item, "text")
        bad += [] if hasattr(item, "text") else [item]
    detail = [item.detail for item in bad]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([texts, reasons(bad)[:3], detail[:1], peak >> 10]), flush=True)
"""


def read_within(size: int, *files: Path) -> list[tuple[int, list[str], str, int]]:
    """Of each file the number of texts, reasons, a detail and the peak of memory so far in MiB."""
    command = [sys.executable, "-c", READ, str(size), str(CAP), *map(str, files)]
    done = subprocess.run(
        command,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # an arena for each thread takes address space
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [(texts, why, " ".join(detail), peak) for texts, why, detail, peak in found]


def zstd_frame(window_log: int, content: bytes) -> bytes:
    """A frame of one raw block that may look back 2^window_log bytes (RFC 8878)."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3])
    return header + (len(content) << 3 | 1).to_bytes(3, "little") + content


def test_small_files_that_ask_for_much(tmp_path: Path) -> None:
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), ["a" * (CAP - 1000)])
    files = {
        "window.jsonl.zst": zstd_frame(31, jsonl([{"text": "a"}])),
        "dictionary.parquet": parquet(
            pa.table({"text": shared}), compression="zstd", store_schema=False
        ),
        "page.parquet": parquet(
            pa.table({"text": ["a" * (CAP // 4)] * 6}),
            use_dictionary=False,
            compression="zstd",
            write_batch_size=10,
            data_page_size=1 << 30,
        ),
        "rows.parquet": parquet(pa.table({"text": pa.nulls(1 << 23, pa.string())})),
        "null.arrow": b"",
        "shared.arrow": b"",
    }
    for name, column in (("null", pa.nulls(1 << 27)), ("shared", shared)):
        sink = pa.BufferOutputStream()
        batch = pa.record_batch({"text": column})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        files[f"{name}.arrow"] = sink.getvalue().to_pybytes()
    for name, data in files.items():
        put(tmp_path / name, data)
        assert len(data) < 30_000, name
    found = dict(
        zip(files, read_within(400 << 20, *(tmp_path / name for name in files)), strict=True)
    )
    told = {name: (count, why) for name, (count, why, *_) in found.items()}
    assert told == {
        "window.jsonl.zst": (0, ["truncated_archive"]),
        "dictionary.parquet": (64, []),
        "page.parquet": (0, ["unreadable"]),
        "rows.parquet": (0, ["unreadable"]),
        "null.arrow": (0, ["unreadable"]),
        "shared.arrow": (64, []),
    }
    assert "134217728 bytes, which max_record_bytes allows" in found["window.jsonl.zst"][2]
    assert "bytes unpacked of" in found["page.parquet"][2]
    assert f"max_record_bytes {CAP}" in found["page.parquet"][2]
    assert (
        f"8388608 rows in a file of {len(files['rows.parquet'])} bytes" in found["rows.parquet"][2]
    )
    assert f"{1 << 27} rows in a file" in found["null.arrow"][2]
    assert max(peak for *_, peak in found.values()) < 300


def test_arrow_is_bounded_by_what_it_unpacks_to(tmp_path: Path) -> None:
    """Text, views and dictionaries of 160 MB, in files of less than 1 MB."""
    large = pa.array(["a" * (160 << 20), "b"])
    shared = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), large)
    columns = {"text": large, "view": large.cast(pa.string_view()), "shared": shared}
    files = {}
    for name, column in columns.items():
        small = column if name == "shared" else pa.array(["b", "b"], column.type)
        batches = [pa.record_batch({"n": [1, 2], "text": of}) for of in (column, small)]
        for packed, stream in itertools.product(("lz4", "zstd"), (False, True)):
            data = arrow(batches, packed, stream=stream)
            files[name, packed, stream] = put(tmp_path / f"{name}-{packed}-{stream}.arrow", data)
            assert len(data) < 1 << 20
    found = dict(zip(files, read_within(400 << 20, *files.values()), strict=True))
    for (name, _, stream), (count, why, detail, peak) in found.items():
        # Of a stream, no byte after a broken message is trusted; a dictionary is there for all.
        after = 0 if stream or name == "shared" else 2
        assert (count, len(why)) == (after, 1 if stream or after else 2)
        assert set(why) == {"unreadable"}
        assert re.fullmatch(
            rf"record batch 0: 1677\d{{5}} bytes unpacked of \d+: over max_record_bytes {CAP}, and "
            "over 100 times what is stored",
            detail,
        )
        assert peak < 80


def arrow(batches: list[pa.RecordBatch], packed: str, *, stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression=packed)
    with new(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_dictionaries_of_a_stream_are_bounded_together(tmp_path: Path) -> None:
    """Each is below the cap, and all of them stay in memory."""
    kind = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema({"text": kind})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd", emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for n in range(1, 6):
            words = [f"{i}" * (6 << 20) for i in range(n)]  # one more each time: a delta
            shared = pa.DictionaryArray.from_arrays(pa.array([n - 1], pa.int32()), words)
            writer.write_batch(pa.record_batch([shared], schema=schema))
    items = read(put(tmp_path / "a.arrow", sink.getvalue().to_pybytes()), max_record_bytes=CAP)
    assert [len(text) for text in texts(items)] == [6 << 20] * 2
    assert reasons(items) == ["unreadable"]
    assert f"over max_record_bytes {CAP}" in items[-1].detail


def test_rows_that_share_a_value_are_read(tmp_path: Path) -> None:
    """What is no more than a million rows, or 64 for each byte, is."""
    data = parquet(pa.table({"text": pa.nulls(100_000, pa.string())}))
    items = read(put(tmp_path / "a.parquet", data))
    assert (len(items), set(reasons(items))) == (100_000, {"not_a_string"})


@pytest.mark.parametrize("kind", ["zst", "xz"])
def test_a_window_that_the_cap_allows_is_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "WINDOW", 1 << 20)
    lines = jsonl([{"text": "a"}])
    data = zstd_frame(23, lines) if kind == "zst" else lzma.compress(lines)  # 8 MiB each
    file = put(tmp_path / f"a.jsonl.{kind}", data)
    assert texts(read(file, max_record_bytes=8 << 20)) == ["a"]
    (bad,) = read(file, max_record_bytes=4 << 20)
    assert (
        bad.detail
        == "it looks back more than 4194304 bytes, which max_record_bytes allows: raise that"
    )


def test_an_index_outside_of_a_dictionary_costs_its_batch(tmp_path: Path) -> None:
    indices = pa.array([0, 7], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, ["a"], safe=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema({"text": column.type})) as writer:
        writer.write_batch(pa.record_batch({"text": column}))
    items = read(put(tmp_path / "a.arrow", sink.getvalue().to_pybytes()))
    assert reasons(items) == ["unreadable"]


def test_a_stream_that_ends_before_its_file_loses_no_row_unsaid(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": ["a", "b", "c"]})
    ends = []
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for start in range(3):
            writer.write_table(table.slice(start, 1))
            ends.append(sink.tell())
    data = sink.getvalue().to_pybytes()
    end = data[-8:]  # the mark of a stream's end
    assert texts(read(put(tmp_path / "a.arrow", data))) == ["a", "b", "c"]
    cut = data[: ends[0]] + end + data[ends[0] :]
    *good, bad = read(put(tmp_path / "a.arrow", cut))
    assert texts(good) == ["a"]
    assert bad.lost_bytes == len(cut) - ends[0] - 8 == int(bad.detail.split()[6])


def test_rows_are_plausible_up_to_a_million_or_64_for_each_byte() -> None:
    for size, most in ((10, 1 << 20), (1 << 20, 64 << 20)):
        split = SimpleNamespace(file_size=size)
        for rows in (0, 1, most):
            require_plausible(rows, split)
        for rows in (-1, most + 1):
            with pytest.raises(Unreadable, match=f"{rows} rows in a file of {size} bytes"):
                require_plausible(rows, split)
