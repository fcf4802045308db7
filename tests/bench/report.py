"""Size and time of the report of many windows: python tests/bench/report.py [WINDOWS]

Draws scores for three categories, selects, writes the page, and opens it in Chromium.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

import longattn as la
from longattn.reports.report import write_report
from longattn.resume.fingerprint import own_folder
from tests.labelled import labelled_table, write_labelled

FILE_ROWS = 20_000


def write_drawn(folder: str, windows: int) -> None:
    rng = np.random.default_rng(1)
    for file in range(-(-windows // FILE_ROWS)):
        category = "abc"[file % 3]
        ids = [f"{category}-{file}-{i}" for i in range(FILE_ROWS)]
        ds, variance = rng.normal(0.3, 0.03, FILE_ROWS), rng.gamma(4, 2e-8, FILE_ROWS)
        write_labelled(folder, category, labelled_table(category, ids, ds, variance, window=1))
    own_folder(folder, {"window": 32768, "min_distance": 8192}, None)
    la.select(folder, keep={"fraction": 0.3})


def main(windows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_drawn(folder, windows)
        started = time.perf_counter()
        path = Path(write_report(folder))
        written = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page()
            started = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("#agreement svg")
            opened = time.perf_counter() - started
            browser.close()
        print(
            f"{windows:,} windows: {path.stat().st_size / 1e6:.2f} MB, written in {written:.1f} s, "
            f"drawn in {opened:.1f} s, peak {peak:.2f} GiB with selection"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
