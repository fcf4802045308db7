"""Labelled files made without a pipeline, for tests of what reads them."""

import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longattn.scoring.settings import ScoreParts
from longattn.storage.files import join
from longattn.storage.tables import LABELLED, content_name, write_table


def labelled_table(category, ids, ds, variance, window=8, source="f.jsonl"):
    n = len(ids)
    columns = {
        "data_id": list(ids),
        "content": [f"text of {i}" for i in ids],
        "input_ids": [[zlib.crc32(f"{i}/{t}".encode()) % 50 for t in range(window)] for i in ids],
        "category": [category] * n,
        "source": [source] * n,
        "document_id": list(ids),
        "window_index": [0] * n,
        "token_start": [0] * n,
        "token_stop": [window] * n,
        "recurrence": list(ds),
        "recurrence_rarity": list(ds),
        "recurrence_pairs": list(ds),
        "ds": list(ds),
        "variance": list(variance),
        "ds_heads": [[x] for x in ds],
        "variance_heads": [[x] for x in variance],
    }
    return pa.table(columns, schema=LABELLED)


def score_parts(**changes):
    """All that decides a score, of no checkpoint that there is."""
    values = {
        "definition": 1,
        "weights": "w",
        "tokenizer": "t",
        "window": 8,
        "min_distances": (2,),
        "rope_theta": None,
        "bos": None,
        "dtype": "float32",
        "keys": "centred",
    }
    return ScoreParts(**{**values, **changes})


def write_labelled(output, category, table, metadata=None):
    url = join(str(output), "labelled", category, content_name(table["data_id"]))
    write_table(url, table, metadata or {"fingerprint": "f"})
    return url


def write_score_table(labelled, name, columns, metadata=None):
    """The file of a score table beside a labelled file: its data_id, and a value a row of each column."""
    output, _, rest = str(labelled).rpartition("/labelled/")
    ids = pq.ParquetFile(labelled).read(columns=["data_id"])["data_id"]
    url = join(output, "scores", name, rest)
    write_table(url, pa.table({"data_id": ids, **columns}), metadata or {"fingerprint": "s"})
    return url


def write_heads_table(labelled, name, layers, scores, heads=None):
    """The file of a score of kind attention beside a labelled file.

    Args:
        layers: their numbers.
        scores: a row each, DS and variance, (2, layers x heads); None of a window without a value.
        heads: of each layer, where no row says so.
    """
    heads = heads or next(len(of[0]) for of in scores if of is not None) // len(layers)
    about = {"shape": json.dumps([len(layers), heads]), "layers": json.dumps(layers)}
    columns, fields = {}, []
    for i, column in enumerate((f"{name}_heads", f"{name}_variance_heads")):
        lists = [None if of is None else list(of[i]) for of in scores]
        columns[column] = pa.array(lists, pa.list_(pa.float64()))
        fields.append(pa.field(column, pa.list_(pa.float64()), metadata=about))
    url = write_score_table(labelled, name, columns)
    schema = pa.schema([pa.field("data_id", pa.string()), *fields])
    write_table(url, pq.ParquetFile(url).read().cast(schema), {"fingerprint": "s"})
    return url


def data_files(output):
    """Bytes of every Parquet file, by its place below the output."""
    paths = Path(output).rglob("*.parquet")
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}
