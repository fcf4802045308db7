"""The small scorer that ships with the package; MODEL_CARD.md says what it is and is not."""

from pathlib import Path

CHECKPOINT: Path = Path(__file__).parent
"""Folder of a Hugging Face checkpoint: config, weights of layer 0, tokenizer."""
