"""Selected files made without a run, and what is read back of an export, by other eyes than the writers'."""

import csv
import gzip
import json
import struct
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from longattn.formats.export import Export, export
from longattn.storage.files import filesystem, list_files
from longattn.storage.tables import SELECTED, write_table
from tests.labelled import labelled_table


def write_selected(folder, category, rows, names=None, file="a", lengths=None):
    """One selected file with windows of these ids; names are data_ids, lengths what it says of each."""
    n = len(rows)
    names = names or [f"{category}-{i:03d}" for i in range(n)]
    table = labelled_table(category, names, *[[0.1] * n] * 2)
    for column, values in (("input_ids", rows), ("token_stop", lengths or [*map(len, rows)])):
        at = table.column_names.index(column)
        table = table.set_column(at, table.field(at), pa.array(values, table.field(at).type))
    table = table.append_column("lds", [[0.0] * n]).select(SELECTED.names).cast(SELECTED)
    write_table(f"{folder}/selected/{category}/{file}.parquet", table, {})


def drawn(n, length, vocabulary, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (n, length)).tolist()


def exported(folder, format, vocab_size=100, window=8, **wanted):
    return export(
        str(folder), Export(vocab_size=vocab_size, window=window, format=format, **wanted)
    )


def read_bytes(url):
    fs, path = filesystem(str(url))
    return fs.cat_file(path)


def names_of(folder):
    """Names of all files below a folder."""
    return sorted(url.removeprefix(f"{folder}/") for url in list_files(str(folder), ""))


def read_mds(folder):
    """The samples below a folder with an index.json, by the layout that mosaicml-streaming documents."""
    index = json.loads(read_bytes(f"{folder}/index.json"))
    assert index["version"] == 2
    return [sample for shard in index["shards"] for sample in _shard(folder, shard)]


def _shard(folder, shard):
    data = read_bytes(f"{folder}/{shard['raw_data']['basename']}")
    assert len(data) == shard["raw_data"]["bytes"]
    (n,) = struct.unpack_from("<I", data)
    assert n == shard["samples"]
    offsets = struct.unpack_from(f"<{n + 1}I", data, 4)
    assert offsets[0] == 4 * (n + 2) and offsets[-1] == len(data)
    for begin, end in pairwise(offsets):
        sample, at, sizes = {}, begin, []
        for size in shard["column_sizes"]:
            if size is None:
                (size,) = struct.unpack_from("<I", data, at)
                at += 4
            sizes.append(size)
        columns = zip(shard["column_names"], shard["column_encodings"], sizes, strict=True)
        for name, encoding, size in columns:
            sample[name] = _decoded(encoding, data[at : at + size])
            at += size
        assert at == end
        yield sample


def _decoded(encoding, data):
    if encoding == "str":
        return data.decode()
    if encoding == "int":
        return struct.unpack("<q", data)[0]
    assert encoding == "ndarray:int32"
    axes, width = data[0] >> 2, 1 << (data[0] & 3)
    shape = np.frombuffer(data[1 : 1 + axes * width], f"<u{width}").tolist()
    return np.frombuffer(data[1 + axes * width :], "<i4").reshape(shape).tolist()


def read_jsonl(url):
    data = zstandard.ZstdDecompressor().decompressobj().decompress(read_bytes(url))
    return [json.loads(line) for line in data.decode().splitlines()]


def read_npy(url, dtype):
    """Ids, and lines of the bounds beside."""
    lines = gzip.decompress(read_bytes(str(url).removesuffix(".npy") + ".csv.gz")).decode()
    bounds = [(int(a), int(b), *rest) for a, b, *rest in csv.reader(lines.splitlines())]
    return np.frombuffer(read_bytes(url), dtype), bounds


def sequences(folder, format):
    """Of an export: data_id, category and ids of each sequence, in order, whatever the format."""
    place, found = f"{folder}/{format}", []
    if format == "mds":
        indices = [url for url in list_files(place, "") if url.endswith("index.json")]
        for index in indices:
            samples = read_mds(index.rpartition("/")[0])
            found += [(s["data_id"], s["domain"], s["input_ids"]) for s in samples]
    elif format == "jsonl":
        for url in list_files(place, ".jsonl.zst"):
            found += [(r["data_id"], r["category"], r["input_ids"]) for r in read_jsonl(url)]
    else:
        dtype = json.loads(read_bytes(f"{place}/export.json"))["dtype"]
        for url in list_files(place, ".npy"):
            ids, bounds = read_npy(url, dtype)
            found += [(name, of, ids[a:b].tolist()) for a, b, name, of, _ in bounds]
    return found


def write_short(folder, rows, files=1, name="short"):
    """Parquet files of ids, in row groups of 8, the rows shuffled over so many files."""
    order = np.random.default_rng(files).permutation(len(rows))
    for file, chosen in enumerate(np.array_split(order, files)):
        table = pa.table(
            {"input_ids": [rows[i] for i in chosen]},
            pa.schema([("input_ids", pa.list_(pa.int32()))]),
        )
        (folder / name).mkdir(exist_ok=True)
        pq.write_table(table, folder / name / f"{file}.parquet", row_group_size=8)


def short_rows(n=100, largest=11, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 100, rng.integers(1, largest + 1)).tolist() for _ in range(n)]


def pieces_of(rows, window=8):
    return sorted(row[at : at + window] for row in rows for at in range(0, len(row), window))
