"""Labelled folders and settings whose selection is known: `golden.json` holds what they gave.

The answers were written by an implementation that shares no code with the SQL: partitions in NumPy,
sums as Python integers, cuts by radix. Scores are drawn with `random.Random.random`, which is the
same in every version of Python.
"""

import itertools
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import longattn as la
from longattn.storage.tables import LABELLED, write_table

EXTREME = [5e-324, -5e-324, 1e-310, 2.5e-308, 1e150, -1e150, 1.0000000000000002, 1e-17, 0.0, -0.0]
FILES = 4


def _bell(draw):
    return sum(draw.random() for _ in range(6)) / 6 - 0.5


SCORES = {
    "drawn": lambda draw, category: (0.3 + 0.2 * _bell(draw), 1e-7 * draw.random() ** 2),
    "ties": lambda draw, category: (draw.randrange(4) / 8, draw.randrange(3) * 1e-7),
    "constant": lambda draw, category: (
        0.1 if category == "a" else 0.3 + 0.1 * _bell(draw),
        0.3 if category == "b" else draw.random() * 1e-6,
    ),
    "extreme": lambda draw, category: (
        draw.choice(EXTREME) if category == "a" else draw.choice(EXTREME[:4]) + _bell(draw),
        draw.choice(EXTREME) if category == "b" else 1e-7 * draw.random(),
    ),
}  # fmt: skip


def rows_of(kind):
    """Rows by file: three categories, windows of a document that overlap, copies with other scores."""
    draw = random.Random(f"longattn {kind}")
    files = [[] for _ in range(FILES)]
    for category, documents in (("a", 45), ("b", 30), ("c", 1)):
        for document in range(documents):
            for index in range(draw.choice([1, 2, 2, 3, 5])):
                for _ in range(draw.choice([1] * 9 + [3])):
                    ds, variance = SCORES[kind](draw, category)
                    start = index * draw.choice([4, 8, 16])
                    files[draw.randrange(FILES)].append(
                        {
                            "data_id": f"{category}-{document:03d}-{index}",
                            "content": f"{draw.random()}",
                            "input_ids": [draw.randrange(100) for _ in range(4)],
                            "category": category,
                            "document_id": f"{document:03d}" if document % 5 else None,
                            "token_start": start,
                            "token_stop": start + 16 + document % 3,
                            "recurrence_pairs": draw.randrange(50) / 50,
                            "ds": ds,
                            "variance": variance,
                        }
                    )
    return files


def write_labelled_rows(path, kind):
    for number, rows in enumerate(rows_of(kind)):
        table = pa.Table.from_pylist(rows, schema=LABELLED)
        write_table(f"{path}/labelled/{number}.parquet", table, {"fingerprint": "f"})


def cases():
    """(kind of scores, settings), by name."""
    keeps = [{"fraction": 0.37}, {"count": 25}, {"tokens": 700}]
    rules = [
        {},
        {"alpha": 0.7, "standardize": "minmax"},
        {"rank_by": "recurrence_pairs"},
        {"overlap": "prefer_distinct", "alpha": 2.0},
        {"overlap": "prefer_distinct", "rank_by": "recurrence_pairs", "standardize": "minmax"},
    ]
    for kind, (number, rule), keep in itertools.product(SCORES, enumerate(rules), keeps):
        yield f"{kind}-{number}-{next(iter(keep))}", (kind, {**rule, "keep": keep})


def answer(path, settings):
    """What a selection gave: files, kept ids with their LDS, and the summary, doubles in hexadecimal."""
    told = la.select(path, **settings, file_bytes=10**9)
    found = {}
    for file in sorted(pq.ParquetDataset(f"{path}/selected").files):
        rows = pq.ParquetFile(file).read(["data_id", "lds"]).to_pylist()
        found[file.rpartition("/selected/")[2]] = [
            f"{row['data_id']} {row['lds'].hex()}" for row in rows
        ]
    summaries = {
        category: {
            name: value.hex() if isinstance(value, float) else value
            for name, value in of.to_dict().items()
            if name != "threshold"  # of what ranks: not told when these were made
        }
        for category, of in told.items()
    }
    return {"files": found, "categories": summaries}


def wrong(folder, kind, which):
    """Names of those of the 15 cases of a kind that do not select what they always did."""
    golden = json.loads(Path(__file__).with_name("golden.json").read_text())
    write_labelled_rows(folder, kind)
    of_kind = [(name, rule) for name, (of, rule) in cases() if of == kind]
    assert len(of_kind) == 15
    return [name for name, rule in of_kind[which] if answer(str(folder), rule) != golden[name]]
