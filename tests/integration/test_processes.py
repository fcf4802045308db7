"""Local runs as processes of their own: killed, interrupted, side by side."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import longattn as la
from longattn.reports.verify import verify
from tests import faults
from tests.conftest import _first_document, config
from tests.faults import files, finish, settings, until


def started(folder, settings, *arguments, log=None, **options):
    """`longattn run --executor local` of these settings."""
    path = folder / "config.yaml"
    path.write_text(settings.to_yaml())
    command = ("run", path, "--executor", "local", *arguments)
    return faults.command(*command, log=log or folder / "log", **options)


def test_runs_killed_at_random_moments(checkpoint, tmp_path):
    """Sixteen kills, at any moment of the time that a whole run takes."""
    text, documents = _first_document("book"), tmp_path / "documents"
    faults.write_corpus(documents / "book", [text[p : p + 4000] for p in range(0, 80_000, 4000)])
    for name in ("first", "whole"):  # the first starts the server that forks them
        whole, began = settings(documents, tmp_path / name, checkpoint), time.monotonic()
        assert finish(started(tmp_path, whole)) == 0, (tmp_path / "log").read_text()
    seconds = time.monotonic() - began
    chance, killed_with, outputs = random.Random(5), [], [tmp_path / "0"]
    while len(killed_with) < 16:
        run = started(tmp_path, settings(documents, outputs[-1], checkpoint))
        run.join(chance.uniform(0, seconds))
        if run.is_alive():
            run.kill()
            run.join()
            killed_with.append(files(outputs[-1]))
        else:  # complete: the next one begins anew
            assert run.exitcode == 0, (tmp_path / "log").read_text()
            outputs.append(tmp_path / str(len(outputs)))
    last = started(tmp_path, settings(documents, outputs[-1], checkpoint))
    assert finish(last) == 0, (tmp_path / "log").read_text()
    assert 0 in killed_with and any(killed_with), killed_with  # before and after its files appear
    for output in outputs:
        faults.assert_same(output, whole.output)
        assert list(verify(str(output))) == []
        assert not list(output.glob("**/.*.tmp"))
        assert not (output / "_longattn/hold.json").exists()


@pytest.mark.parametrize(("signals", "batch_seconds"), [(1, 1), (2, 60)])
def test_ctrl_c_finishes_what_is_in_flight_and_a_second_one_ends_at_once(
    signals, batch_seconds, corpus, checkpoint, tmp_path
):
    values = config(corpus, tmp_path / "out", checkpoint, scorer={"model": checkpoint, "batch": 64})
    begun = tmp_path / "begun"
    slow = {"BEGUN": str(begun), "BATCH_SECONDS": str(batch_seconds)}
    run = started(
        tmp_path, values, hook="tests.hooks.slow_batches", environment=slow, block=4 << 20
    )
    until(begun.exists, run)
    began = time.monotonic()
    for _ in range(signals):
        os.kill(run.pid, signal.SIGINT)
        time.sleep(0.3)
    ended, said = finish(run, 100), (tmp_path / "log").read_text()
    assert ended == 130, said
    assert "longattn: stopped by Ctrl-C; run again to go on" in said and "Traceback" not in said
    labelled = list((tmp_path / "out" / "labelled").rglob("*.parquet"))
    assert bool(labelled) == (signals == 1)  # what was in flight is kept, unless told twice
    if signals == 2:
        assert time.monotonic() - began < 20


def test_shares_at_once_one_killed_and_a_document_in_both(corpus, checkpoint, tmp_path):
    """What both have scored is counted as a double, and used once."""
    documents = tmp_path / "corpus"
    shutil.copytree(corpus, documents)
    book = sorted((documents / "book").iterdir())
    book[2].write_bytes(book[2].read_bytes() + book[0].read_bytes() + book[1].read_bytes())
    whole = config(documents, tmp_path / "whole", checkpoint)
    la.run(whole, executor="local")
    values = config(documents, tmp_path / "out", checkpoint)
    logs = [tmp_path / "log1", tmp_path / "log2"]
    one, other = (
        started(tmp_path, values, "--shard", f"{i}/2", log=log, block=4 << 20)
        for i, log in enumerate(logs, 1)
    )
    until(lambda: list((tmp_path / "out").glob("_longattn/shards/1-of-2.json")), one)
    one.kill()
    assert finish(other) == 0, logs[1].read_text()
    if not (tmp_path / "out/selected").exists():  # it ended before it could see the other dead
        assert "shares that are not labelled yet: 1/2" in logs[1].read_text()
    la.run(values, executor="local")
    # Whichever run came first to a document that two files hold says which of them is its source.
    got, want = (
        faults.labelled(tmp_path / name, "selected", but=["source"]) for name in ("out", "whole")
    )
    assert got.equals(want)
    assert list(verify(values.output)) == []
    told = json.loads(Path(values.output, "_longattn/summary.json").read_text())["categories"]
    labelled = faults.labelled(tmp_path / "out")["data_id"].to_pylist()
    doubles = sum(category.get("duplicate_rows", 0) for category in told.values())
    assert len(labelled) - len(set(labelled)) == doubles
