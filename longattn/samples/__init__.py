"""Sample documents that ship with the package; SOURCES.md gives title, source and licence of each."""

from pathlib import Path

SAMPLES: Path = Path(__file__).parent
"""Folder of `book.jsonl.gz`, `c.jsonl.gz` and `python.jsonl.gz`, columns `content` and `source`."""
