"""Sample documents that ship with the package; SOURCES.md names each one and its licence."""

from pathlib import Path

SAMPLES = Path(__file__).parent
