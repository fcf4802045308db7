"""The numbers of a run as Prometheus metrics, exported by Ray under `ray_<name>`.

One process, the monitor of the run, raises them all: no series for every actor of every node, and a
split that is read again is not counted twice.
"""

from __future__ import annotations

from ray.util.metrics import Counter

LABELS = ("stage", "category")  # stage: window (read, tokenize, cut), score, write
# What the monitor is told -> the metric that it raises, and what that counts.
METRICS = {
    "documents": ("longattn_documents_total", "documents read"),
    "windows": (
        "longattn_windows_total",
        "windows cut (stage window), scored (score), written (write)",
    ),
    "tokens": (
        "longattn_tokens_total",
        "tokens of documents tokenized (stage window), of windows scored (score)",
    ),
    "quarantined": ("longattn_quarantined_records_total", "records that could not be used"),
    "bytes": ("longattn_written_bytes_total", "bytes of labelled Parquet files"),
    "busy": ("longattn_busy_seconds_total", "seconds of work, summed over actors"),
    "kernel": ("longattn_kernel_seconds_total", "seconds of it in the attention statistics"),
    "waiting": (
        "longattn_waiting_seconds_total",
        "seconds without input or without room downstream, summed over actors",
    ),
}


class Exporter:
    """Raises the metrics of this process."""

    def __init__(self) -> None:
        self._counters = {
            told: Counter(name, description=about, tag_keys=LABELS)
            for told, (name, about) in METRICS.items()
        }

    def add(self, stage: str, category: str, **told: float) -> None:
        """Add to metrics by their short names; what is not above 0 is left out."""
        for name, amount in told.items():
            if amount > 0:
                self._counters[name].inc(amount, {"stage": stage, "category": category})
