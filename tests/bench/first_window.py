"""From the command to the first scored window: python -m tests.bench.first_window [TIMES]

Runs `longattn run configs/quickstart.yaml --executor local` until its first window is scored, each time in a
process of its own, and prints wall and processor seconds until the scorer is made, until it stands, and
until the window has its scores, and the load of the machine.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHILD = """
import os, sys, time
from longattn.__main__ import main
from longattn.pipeline.score_actor import ScoreWindows

began, output = float(sys.argv[1]), sys.argv[2]

def mark(what):
    print(f"{what}: {time.time() - began:.2f} s, {time.process_time():.2f} s of processors", end="; ")

def make(self, *args, of=ScoreWindows.__init__):
    mark("scorer begun")
    of(self, *args)
    mark("stands")

def scored(self, batch, of=ScoreWindows._scored):
    of(self, batch)
    mark(f"{len(batch)} windows scored")
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    os._exit(0)

ScoreWindows.__init__, ScoreWindows._scored = make, scored
sys.argv = ["longattn", "run", "configs/quickstart.yaml", "--executor", "local", "--set", f"output={output}"]
main()
"""


def main(times: int) -> None:
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", CHILD, str(time.time()), folder]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(
                command, cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
