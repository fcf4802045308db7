"""Runs broken for real, each compared with an unbroken one: nothing lost, nothing twice."""

import json
import os
import random
import re
import shutil
import signal
import time

import pyarrow.parquet as pq

from longattn.reports.verify import verify
from longattn.windows.ids import document_id
from tests import faults
from tests.conftest import _first_document
from tests.faults import files, finish, settings, until
from tests.resume.test_lock import other_machine

DEADLY = "tests.hooks.deadly_documents"
READERS = "tests.hooks.deadly_lines"
STILL = "tests.hooks.scorers_that_stand_still"
STUCK = "tests.hooks.a_node_that_gets_stuck"


def test_drivers_killed_at_random_moments(cluster, documents, checkpoint, unbroken, tmp_path):
    """Four kills: half at a moment of the time an unbroken run takes, half after its files appear.

    Sixteen more, of local runs, are in test_processes.py; a hundred in tests/soak.
    """
    chance = random.Random(4)
    killed_with, outputs = [], [tmp_path / "0"]
    seconds = json.loads((unbroken / "_longattn/summary.json").read_text())["seconds"]
    while len(killed_with) < 4:
        output = outputs[-1]
        before = files(output)
        run = faults.start(
            settings(documents, output, checkpoint), cluster.address, tmp_path / "log"
        )
        if len(killed_with) % 2:
            while run.is_alive() and files(output) == before:
                time.sleep(0.01)
            run.join(chance.uniform(0, 2))
        else:
            run.join(chance.uniform(0, seconds))
        if run.is_alive():
            run.kill()
            run.join()
            killed_with.append(files(output))
        else:  # complete: the next one begins anew
            assert run.exitcode == 0, (tmp_path / "log").read_text()
            outputs.append(tmp_path / str(len(outputs)))
    last = settings(documents, outputs[-1], checkpoint)
    assert finish(faults.start(last, cluster.address, tmp_path / "log")) == 0
    assert 0 in killed_with and any(killed_with), killed_with  # before and after its files appear
    for output in outputs:
        faults.assert_same(output, unbroken)
        assert list(verify(str(output))) == []
        assert not list(output.glob("**/.*.tmp"))
        assert not (output / "_longattn/hold.json").exists()


def test_the_share_of_a_killed_driver_is_taken_up(
    cluster, documents, checkpoint, unbroken, tmp_path
):
    config = settings(documents, tmp_path / "out", checkpoint)
    killed = faults.start(config, cluster.address, tmp_path / "log1", shard="1/2")
    until(lambda: files(tmp_path / "out") >= 1, killed)
    killed.kill()
    other = faults.start(config, cluster.address, tmp_path / "log2", shard="2/2")
    assert finish(other) == 0, (tmp_path / "log2").read_text()
    assert "share 1/2 has died" in (tmp_path / "log2").read_text()
    faults.assert_same(tmp_path / "out", unbroken)
    assert list(verify(str(tmp_path / "out"))) == []
    assert not list((tmp_path / "out/_longattn/shards").glob("*"))


def test_killed_actors_of_both_stages(cluster, documents, checkpoint, unbroken, tmp_path):
    run = faults.start(
        settings(documents, tmp_path / "out", checkpoint), cluster.address, tmp_path / "log"
    )
    for name, seen in (("MapBatches(SplitWindows)", 0), ("MapBatches(ScoreWindows)", 2)):
        until(
            lambda name=name, seen=seen: files(tmp_path / "out") >= seen and faults.actors(name),
            run,
        )
        for actor in faults.actors(name):
            actor.kill()
    assert finish(run) == 0, (tmp_path / "log").read_text()
    faults.assert_same(tmp_path / "out", unbroken)
    summary = json.loads((tmp_path / "out/_longattn/summary.json").read_text())
    assert summary["faults"]["actor restarts"] >= 1


def test_sigterm_finishes_what_is_in_flight_and_says_resume_me(
    cluster, documents, checkpoint, unbroken, tmp_path
):
    config = settings(documents, tmp_path / "out", checkpoint)
    run = faults.start(config, cluster.address, tmp_path / "log")
    until(lambda: files(tmp_path / "out") >= 1, run)
    told = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    assert finish(run) == 75, (tmp_path / "log").read_text()
    assert time.monotonic() - told < 60  # 25 s of grace, and Ray's end on loaded cores
    assert "run again to go on" in (tmp_path / "log").read_text()
    there = set((tmp_path / "out").glob("labelled/**/*.parquet"))
    assert finish(faults.start(config, cluster.address, tmp_path / "log")) == 0
    assert there <= set((tmp_path / "out").glob("labelled/**/*.parquet"))
    faults.assert_same(tmp_path / "out", unbroken)


def test_a_second_run_is_refused_by_the_name_of_the_first_which_ends_once_its_hold_is_lost(
    cluster, documents, checkpoint, tmp_path
):
    config = settings(documents, tmp_path / "out", checkpoint)
    first = faults.start(config, cluster.address, tmp_path / "log", hook=STILL)
    until((tmp_path / "out/_longattn/hold.json").exists, first)
    second = faults.start(config, cluster.address, tmp_path / "second")
    assert finish(second) == 1
    assert f"pid {first.pid}, since 20" in (tmp_path / "second").read_text()
    deadline = time.monotonic() + 60
    while first.is_alive() and time.monotonic() < deadline:
        other_machine(config.output)  # again, since a beat may come between
        time.sleep(0.5)
    assert finish(first, 1) == 1
    assert "another run has taken the folder over" in (tmp_path / "log").read_text()


def test_a_killed_raylet_with_work_on_it(cluster, documents, checkpoint, unbroken, tmp_path):
    """Of three window actors of one CPU each one at least is on the node, and is kept at work there."""
    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    config = settings(
        documents, tmp_path / "out", checkpoint, workers={"window": [3, 3], "score": [1, 1]}
    )
    at_work = tmp_path / "at work"
    run = faults.start(
        config,
        cluster.address,
        tmp_path / "log",
        hook=STUCK,
        environment={"STUCK_NODE": node.node_id, "STUCK": str(at_work)},
    )
    until(lambda: files(tmp_path / "out") >= 1 and at_work.exists(), run)
    cluster.remove_node(node, allow_graceful=False)
    another = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    ended = finish(run)
    cluster.remove_node(another)
    if ended:
        assert finish(faults.start(config, cluster.address, tmp_path / "log")) == 0
    else:
        summary = json.loads((tmp_path / "out/_longattn/summary.json").read_text())
        assert any(summary["faults"].values())
    faults.assert_same(tmp_path / "out", unbroken)


def test_documents_that_kill_their_process_or_eat_its_memory(
    cluster, documents, checkpoint, unbroken, tmp_path
):
    shutil.copytree(documents, tmp_path / "documents")
    texts = ["KILLS ITS PROCESS " * 500, "EATS ALL MEMORY " * 500]
    with (tmp_path / "documents/book/00008.jsonl").open("a") as file:
        file.writelines(json.dumps({"content": text}) + "\n" for text in texts)
    config = settings(tmp_path / "documents", tmp_path / "out", checkpoint)
    run = faults.start(config, cluster.address, tmp_path / "log", hook=DEADLY)
    assert finish(run) == 0, (tmp_path / "log").read_text()
    rows = pq.read_table(tmp_path / "out/quarantine").to_pylist()
    assert len(rows) == 2 and rows[0]["reason"] == "killed_process"
    # A tokenizer that gets no memory may raise, or abort.
    assert rows[1]["reason"] in ("killed_process", "out_of_memory", "not_tokenized")
    assert document_id(texts[0].encode()) in rows[0]["detail"]
    faults.assert_same(tmp_path / "out", unbroken, but=["source"])


def test_a_file_that_kills_its_readers_is_told_and_the_rest_goes_on(
    cluster, documents, checkpoint, unbroken, tmp_path
):
    shutil.copytree(documents, tmp_path / "documents")
    deadly = tmp_path / "documents/book/99999-deadly.jsonl"
    deadly.write_text(json.dumps({"content": "KILLS ITS READER"}) + "\n")
    config = settings(tmp_path / "documents", tmp_path / "out", checkpoint)
    run = faults.start(config, cluster.address, tmp_path / "log", hook=READERS)
    assert finish(run) == 1
    told = rf"1 of \d+ splits are unfinished: {deadly}: 2 processes died at it; run again"
    assert re.search(told, (tmp_path / "log").read_text())
    rows, wanted = (faults.labelled(o, but=["source"]) for o in (tmp_path / "out", unbroken))
    assert rows.equals(wanted)


def test_a_run_that_stands_still_says_what_it_waits_for_and_ends(
    cluster, documents, checkpoint, unbroken, tmp_path
):
    workers = {"window": 1, "score": 1, "wait_seconds": 1}
    config = settings(documents, tmp_path / "out", checkpoint, workers=workers)
    run = faults.start(config, cluster.address, tmp_path / "log", hook=STILL)
    assert finish(run, 120) == 1
    said = (tmp_path / "log").read_text()
    waiting = r"its scorers, or the storage; `ray status` and the Ray dashboard say more"
    assert f"no progress for a minute or more; waiting for {waiting}" in said
    assert f"longattn: no progress for 15 s; waited for {waiting}; run again to go on" in said
    run = faults.start(config, cluster.address, tmp_path / "log")
    assert finish(run) == 0, (tmp_path / "log").read_text()
    faults.assert_same(tmp_path / "out", unbroken)


def test_corpus_files_replaced_truncated_and_removed_under_way(
    cluster, documents, checkpoint, tmp_path
):
    shutil.copytree(documents, tmp_path / "documents")
    *_, gone, cut, other = sorted((tmp_path / "documents/book").iterdir())
    config = settings(tmp_path / "documents", tmp_path / "out", checkpoint)
    run = faults.start(config, cluster.address, tmp_path / "log")
    until((tmp_path / "out/_longattn/hold.json").exists, run)  # listed, and not read yet
    other.write_text(json.dumps({"content": _first_document("python")[:9000]}) + "\n")
    os.truncate(cut, cut.stat().st_size // 2)
    gone.unlink()
    assert finish(run) == 1
    told = (tmp_path / "log").read_text()
    assert "3 of 17 splits are unfinished: " in told
    assert told.count("changed since it was listed") == 2 and told.count("No such file") == 1
    assert finish(faults.start(config, cluster.address, tmp_path / "log")) == 0
    fresh = settings(tmp_path / "documents", tmp_path / "fresh", checkpoint)
    assert finish(faults.start(fresh, cluster.address, tmp_path / "log")) == 0
    faults.assert_same(tmp_path / "out", tmp_path / "fresh")
    assert list(verify(config.output)) == []
    (bad,) = pq.read_table(tmp_path / "fresh/quarantine").to_pylist()
    assert bad["source"] == str(cut) and bad["reason"] == "not_json"
