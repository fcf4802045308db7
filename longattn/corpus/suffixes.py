"""What a file's name tells of it: its format, its compression, or what it may have been meant to be."""

from __future__ import annotations

import re

from longattn.corpus.records import Compression, Format

TEXT: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}
PACKED: dict[str, Compression | None] = {
    "": None,
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".zst": "zstd",
}
TABLES: dict[str, Format] = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
SUFFIXES: dict[str, tuple[Format, Compression | None]] = {
    **{
        text + pack: (kind, packed)
        for text, kind in TEXT.items()
        for pack, packed in PACKED.items()
    },
    **{suffix: (kind, None) for suffix, kind in TABLES.items()},
}
ALLOWED = f"{', '.join(TEXT)} (each also {', '.join(list(PACKED)[1:])}), {', '.join(TABLES)}"
LIKE = {
    **dict.fromkeys((".gzip", ".gunzip"), ".gz"),
    **dict.fromkeys((".zstd", ".zstandard", ".zs"), ".zst"),
    **dict.fromkeys((".bzip2", ".bzip", ".bz"), ".bz2"),
    **dict.fromkeys((".lzma", ".xzip"), ".xz"),
    **dict.fromkeys((".jsonlines", ".jl", ".jsonlist", ".ldjson", ".json_l"), ".jsonl"),
    **dict.fromkeys((".pq", ".parq", ".pqt"), ".parquet"),
    **dict.fromkeys((".ipc", ".arrows"), ".arrow"),
    **dict.fromkeys((".text", ".md", ".markdown"), ".txt"),
}
"""Other spellings of suffixes -> those that are read."""
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar")


def hint(name: str) -> str:
    """`; did you mean ...`, of a name or suffix that is not known, what is read that is like it."""
    suffixes = re.findall(r"\.[a-z0-9]+", _last(name).lower())[-2:]
    if not suffixes:
        return ""
    before, last = "".join(suffixes[:-1]), suffixes[-1]
    if last in ARCHIVES:
        return f"; unpack {last} files first, or compress each file by itself, as .jsonl.gz"
    meant = LIKE.get(last)
    if meant is None:
        return ""
    whole = before + meant if meant in PACKED else meant
    if meant in PACKED and before not in TEXT:
        whole = f".jsonl{meant}"
    return f"; did you mean {whole}? Rename {last} files so"


def kind_of(path: str) -> tuple[Format, Compression | None] | None:
    """Format and compression that a file's name tells; a query after it is not the name."""
    return SUFFIXES.get(suffix_of(path))


def suffix_of(path: str) -> str:
    """The known suffix of a file's name, `.jsonl.gz`; empty where it has none."""
    if path.startswith(("http://", "https://")):
        path = path.partition("?")[0].partition("#")[0]
    name = _last(path).lower()
    last = name.rfind(".")
    first = name.rfind(".", 0, last) if last > 0 else -1
    both = (name[first:] if first >= 0 else "", name[last:] if last >= 0 else "")
    return next((suffix for suffix in both if suffix in SUFFIXES), "")


def _last(path: str) -> str:
    return path.rpartition("/")[2]
