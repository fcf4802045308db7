"""A run on the cluster of RAY_ADDRESS, watched: `python -m tests.integration.watched_run CONFIG [kill]`.

Writes to seen.json beside CONFIG how many GPU nodes were alive, and how many GPUs taken, from second
to second until they were given back. Until all that may come are taken a batch of windows takes longer, as
a large model's would: the backlog is there for as long as a node takes to start. With `kill`, the raylet of the
first GPU node that holds a scoring actor is killed once windows are being scored, and what is given back
is not waited for.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray

import longattn as la
from longattn.pipeline import steps as composition
from longattn.pipeline.score_actor import ScoreWindows

GIVEN_BACK_SECONDS = 120
GPUS = 3  # fake_autoscaling.json
ALL_TAKEN = Path(sys.argv[1]).with_name("all-taken")


class ScoreWindows(ScoreWindows):
    """Carried to the actors by value, as it is of `__main__`."""

    def __call__(self, batch):
        for _ in range(len(batch)):
            if not ALL_TAKEN.exists():
                time.sleep(0.2)
        return super().__call__(batch)


def gpu_nodes() -> list[str]:
    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]


def kill_raylet(node: str, session: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        mark = f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={node}".encode()
        if b"/raylet\0" in command and session.encode() in command and mark in environment:
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise RuntimeError(f"no raylet of node {node}")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config, kill = la.Config.from_yaml(sys.argv[1]), "kill" in sys.argv[2:]
    if kill:
        ALL_TAKEN.touch()
    composition.ScoreWindows = ScoreWindows
    ray.init(logging_level="WARNING")
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    started, ended, killed = time.time(), threading.Event(), ""
    seen: list[tuple[float, int, float]] = []

    def look() -> None:
        nonlocal killed
        while not ended.wait(0.5):
            nodes = gpu_nodes()
            taken = ray.cluster_resources().get("GPU", 0) - ray.available_resources().get("GPU", 0)
            seen.append((time.time() - started, len(nodes), taken))
            if taken == GPUS:
                ALL_TAKEN.touch()
            if (
                kill
                and not killed
                and nodes
                and any(Path(config.output).rglob("labelled/*/*.parquet"))
            ):
                killed = nodes[0]
                kill_raylet(killed, session)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        la.run(config)
        finished = time.time() - started
        while not kill and gpu_nodes() and time.time() - started < finished + GIVEN_BACK_SECONDS:
            time.sleep(0.5)
    finally:
        ended.set()
        watcher.join()
    told = {"seen": seen, "finished": finished, "killed": killed, "left": len(gpu_nodes())}
    Path(sys.argv[1]).with_name("seen.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
