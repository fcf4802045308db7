"""Do the tests notice? python tests/mutants.py [--sample N] [--seed S] [TARGET ...]

cosmic-ray (`pip install -e '.[mutants]'`) changes one operator or constant of a target at a time and runs
the tests that `[tool.cosmic-ray.tests]` of pyproject.toml gives it. A sample, drawn by the seed, is
spread over the targets by their sizes. It changes files in place: run it in a clean git worktree, from
its root. Prints each mutant that no test noticed, then how many of each target were noticed.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import toml
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem

COMMAND = [sys.executable, "-m", "cosmic_ray.cli"]


def prepared(folder: Path, target: str, tests: str, timeout: float) -> Path:
    """A session with every mutant of a target."""
    config = {
        "module-path": target,
        "timeout": timeout,
        "excluded-modules": [],
        "test-command": f"{sys.executable} -m pytest -q -x -n 0 -p no:cacheprovider {tests}",
        "distributor": {"name": "local"},
    }
    name = target.replace("/", "-")
    (folder / f"{name}.toml").write_text(toml.dumps({"cosmic-ray": config}))
    session = folder / f"{name}.sqlite"
    subprocess.run([*COMMAND, "init", str(folder / f"{name}.toml"), str(session)], check=True)
    return session


def executed(session: Path, items: list[WorkItem]) -> list[tuple[WorkItem, bool]]:
    """Each of some mutants, and whether a test noticed it."""
    with use_db(str(session)) as database:
        database.clear()
        database.add_work_items(items)
    config = session.with_suffix(".toml")
    subprocess.run([*COMMAND, "exec", str(config), str(session)], check=True)
    with use_db(str(session), WorkDB.Mode.open) as database:
        results = {job: result.test_outcome for job, result in database.results}
    return [(item, results.get(item.job_id) != TestOutcome.SURVIVED) for item in items]


def main() -> None:
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["cosmic-ray"]
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", default=list(settings["tests"]))
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sessions, mutants = {}, []
        for target in arguments.targets:
            tests = settings["tests"][target]
            sessions[target] = prepared(Path(name), target, tests, settings["timeout"])
            with use_db(str(sessions[target])) as database:
                mutants += [(target, item) for item in database.work_items]
        mutants.sort(key=lambda mutant: str(mutant[1].mutations))
        random.Random(arguments.seed).shuffle(mutants)
        drawn = mutants[: arguments.sample]
        print(f"{len(drawn)} of {len(mutants)} mutants", flush=True)
        for target, session in sessions.items():
            done = executed(session, [item for of, item in drawn if of == target])
            for item, noticed in done:
                for change in item.mutations if not noticed else ():
                    row, column = change.start_pos
                    print(
                        f"  unnoticed: {change.module_path}:{row}:{column} {change.operator_name} "
                        f"{change.operator_args or ''}",
                        flush=True,
                    )
            print(f"{target}: {sum(n for _, n in done)} of {len(done)} noticed", flush=True)


if __name__ == "__main__":
    main()
