"""Do the tests notice? python tests/mutants.py [--sample N] [--seed S] [TARGET ...]

cosmic-ray (`pip install -e '.[mutants]'`) changes one operator or constant of a target at a time. Of each
target a sample is drawn by the seed; annotations, which nothing runs, are left out. The tests that
`[tool.cosmic-ray.tests]` of pyproject.toml gives, but those on a cluster, are first run to learn which
comes to which line. Each mutant is then shown to the tests that come to its statement, the quickest
first, in a process forked from one that has collected them: functions get the changed code there; of
what runs on import, all is imported anew. It changes files in place: run it in a copy of the tree, from
its root. A line for each mutant goes to mutants.log in the temporary folder, what became of them all is
printed: `endless` ones, which take four times the processor time and 20 s, are noticed; `not ended` ones,
which wait for half an hour, are not.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType

import cosmic_ray.plugins
import pytest
from cosmic_ray.commands import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec
from coverage import Coverage

# Imported once, before processes part: seconds for each mutant. Nothing that imports longattn, and
# nothing that has threads.
HEAVY = [
    "boto3",
    "duckdb",
    "fastokens",
    "fsspec",
    "hypothesis",
    "numpy",
    "orjson",
    "pandas",
    "psutil",
    "pyarrow.csv",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic",
    "s3fs",
    "safetensors.torch",
    "tokenizers",
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "typer",
    "xxhash",
    "yaml",
    "zstandard",
]
LOG = Path(tempfile.gettempdir(), "mutants.log")  # a line for each mutant
MOST_SECONDS = 60.0  # of a processor, for the tests shown to one mutant


def parted(work: Callable[[], int], seconds: float, log: Path) -> int | None:
    """The exit status of `work` in a forked process; None if that took too long."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.setsid()
            most = int(20 + 4 * seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = int(work())
        finally:
            os._exit(status)
    status, ends = None, time.monotonic() + 1800 + 20 * seconds  # there may be other work
    while status is None and time.monotonic() < ends:
        time.sleep(0.02)
        done, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # with what its tests started
    if status is None:
        os.waitpid(pid, 0)
    return status


class Mutant:
    """A change of one file."""

    def __init__(self, spec: MutationSpec) -> None:
        self.spec, self.path = spec, Path(spec.module_path)
        self.row, self.column = spec.start_pos
        self.first = self.last = self.row  # lines of its statement
        self.function = ""
        self._seek(ast.parse(self.path.read_text()), "")

    def _seek(self, node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                continue
            body = getattr(child, "body", None)
            start = getattr(child, "pattern", child).lineno  # of a match_case
            start = min([start, *(d.lineno for d in getattr(child, "decorator_list", []))])
            end = body[-1].end_lineno if isinstance(child, ast.match_case) else child.end_lineno
            if not start <= self.row <= end:
                continue
            self.first = start
            self.last = max(start, body[0].lineno - 1) if body else end
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            below = f"{name}.{child.name}".lstrip(".") if named else name
            inside = body and self.row >= body[0].lineno
            if isinstance(child, ast.FunctionDef) and inside and not self.function:
                self.function = below  # the outermost: those within it are of its code
            self._seek(child, below)
            return

    def __str__(self) -> str:
        line = self.path.read_text().splitlines()[self.row - 1].strip()
        name = f"{self.spec.operator_name} {self.spec.occurrence}"
        return f"{self.path}:{self.row}:{self.column} {name}: {line}"

    def written(self):
        operator = cosmic_ray.plugins.get_operator(self.spec.operator_name)
        return use_mutation(self.path, operator(**self.spec.operator_args), self.spec.occurrence)

    def put_in(self) -> bool:
        """Give the functions of this process the changed code; False where there are none of it."""
        module = compile(self.path.read_text(), str(self.path), "exec")
        codes, changed = [module], None
        while codes:
            code = codes.pop()
            if code.co_qualname == self.function:
                changed = code
            codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        found = False
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType) and changed is not None:
                code = thing.__code__
                if code.co_qualname == self.function and code.co_filename.endswith(f"/{self.path}"):
                    thing.__code__, found = changed, True
        return found


class Shown:
    """A pytest plugin that runs the collected tests for each mutant, in place of once."""

    def __init__(self, target: str, mutants: list[Mutant], folder: Path) -> None:
        self.target, self.mutants, self.folder = target, mutants, folder
        self.seconds: dict[str, float] = defaultdict(float)
        self.coverage: Coverage | None = None
        self.context, self.failed = "", set[str]()

    def pytest_collection_modifyitems(self, items) -> None:
        items[:] = [item for item in items if "ray_cluster" not in item.fixturenames]
        self.items = {item.nodeid: item for item in items}

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
            crash = getattr(report.longrepr, "reprcrash", None)
            why = " ".join(str(crash.message if crash else report.longrepr).split())[:200]
            (self.folder / "why").write_text(f"{report.nodeid}: {why}")

    @contextlib.contextmanager
    def _under(self, name: str):
        if self.coverage is None:
            yield
            return
        before, started = self.context, time.process_time()
        self.context = name
        self.coverage.switch_context(name)
        yield
        self.context = before
        self.coverage.switch_context(before)
        self.seconds[name] += time.process_time() - started

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        with self._under(item.nodeid):
            yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        with self._under(f"fixture {fixturedef.argname}"):
            yield

    def run(self, names: list[str]) -> int:
        """The tests of these names up to the first that fails: 1; else 0."""
        items = [self.items[name] for name in names]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed and self.coverage is None:
                return 1
        return 0

    def learn(self) -> int:
        """Writes which tests come to which line, and what they take."""
        include = (
            {"include": [self.target]} if self.target.endswith(".py") else {"source": [self.target]}
        )
        self.coverage = Coverage(data_file=None, config_file=False, **include)
        self.coverage.start()
        self.run(list(self.items))
        self.coverage.stop()
        users = defaultdict(list)
        for test, item in self.items.items():
            users[test].append(test)
            for name in item.fixturenames:
                users[f"fixture {name}"].append(test)
        data, lines = self.coverage.get_data(), {}
        for path in data.measured_files():
            of_file = lines[os.path.relpath(path)] = {}
            for line, contexts in data.contexts_by_lineno(path).items():
                tests = {test for name in contexts for test in users[name]}
                of_file[line] = sorted(tests - self.failed)
        took: dict[str, float] = defaultdict(float)
        for name, seconds in self.seconds.items():
            for test in users[name]:
                took[test] += seconds
        told = {"lines": lines, "seconds": took, "failed": sorted(self.failed)}
        (self.folder / "told.json").write_text(json.dumps(told))
        return 0

    def pytest_runtestloop(self, session) -> bool:
        print(f"{len(self.items)} tests are collected", flush=True)
        parted(self.learn, 900, self.folder / "learning.log")
        told = json.loads((self.folder / "told.json").read_text())
        outcomes = {}
        for number, mutant in enumerate(self.mutants):
            tests = tests_of(mutant, told)
            seconds = sum(told["seconds"][test] for test in tests)

            def work(mutant=mutant, tests=tests) -> int:
                return self.run(tests) if mutant.put_in() else 99

            if not tests:
                outcomes[number] = told_of(mutant, 0, 0, "")
            elif mutant.function:
                (self.folder / "why").write_text("")
                with mutant.written():
                    status = parted(work, seconds, self.folder / "log")
                if status != 99:
                    why = (self.folder / "why").read_text()
                    outcomes[number] = told_of(mutant, status, len(tests), why)
            (self.folder / "outcomes.json").write_text(json.dumps(outcomes))
        return True


def tests_of(mutant: Mutant, told: dict) -> list[str]:
    """The tests that come to the statement of a mutant, or else to its file; the quickest first."""
    lines = told["lines"].get(str(mutant.path), {})
    found = {t for at in range(mutant.first, mutant.last + 1) for t in lines.get(str(at), [])}
    if not mutant.function:
        found = {test for of in lines.values() for test in of}
    taken, seconds = [], 0.0
    for test in sorted(found, key=lambda test: told["seconds"][test]):
        seconds += told["seconds"][test]
        if taken and seconds > MOST_SECONDS:
            break
        taken.append(test)
    return taken


def arguments(folder: Path) -> list[str]:
    return f"-q -x -n 0 -p no:cacheprovider --timeout=0 --basetemp={folder}/tmp".split()


def drawn_of(target: str, sample: int, seed: int) -> tuple[list[Mutant], int]:
    """A sample of the mutants of a target but those of annotations, and how many there are."""
    files = [Path(target)] if target.endswith(".py") else sorted(Path(target).rglob("*.py"))
    with use_db(":memory:") as database:
        init(files, database, {})
        specs = [spec for item in database.work_items for spec in item.mutations]
    hints = {file: list(annotations(file)) for file in files}

    def runs(spec: MutationSpec) -> bool:
        of_file = hints[Path(spec.module_path)]
        return not any(start <= tuple(spec.start_pos) < stop for start, stop in of_file)

    of_target = sorted(filter(runs, specs), key=str)
    drawn = random.Random(seed).sample(of_target, min(sample, len(of_target)))
    return [Mutant(spec) for spec in drawn], len(of_target)


def annotations(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if hint is not None:
                yield (hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)


def examined(target: str, tests: list[str], mutants: list[Mutant], folder: Path) -> None:
    """Prints what became of each mutant."""

    def work() -> int:
        return pytest.main([*arguments(folder), *tests], plugins=[Shown(target, mutants, folder)])

    parted(work, 36_000, folder / "target.log")
    told = json.loads((folder / "told.json").read_text())
    outcomes = json.loads((folder / "outcomes.json").read_text())
    for number, mutant in enumerate(mutants):
        if str(number) in outcomes:
            continue
        names = tests_of(mutant, told)  # of what runs on import
        with mutant.written():
            status = parted(
                lambda names=names: pytest.main([*arguments(folder), *names]),
                sum(told["seconds"][name] for name in names),
                folder / "log",
            )
        said = (folder / "log").read_text().splitlines()
        why = next(
            (line for line in reversed(said) if line.startswith(("FAILED", "ERROR", "E "))), ""
        )
        outcomes[str(number)] = told_of(mutant, status, len(names), why)
    print(f"{target}: {dict(Counter(outcomes.values()))} of {len(mutants)}", flush=True)


def told_of(mutant: Mutant, status: int | None, tests: int, why: str) -> str:
    """In a word what became of a mutant, which is printed."""
    words = {0: "unnoticed", None: "not ended", -signal.SIGXCPU: "endless"}
    word = words.get(status, "noticed")
    with LOG.open("a") as file:
        print(f"{word} by {tests} tests ({status}): {mutant} -- {why[:200]}", file=file)
    return word


def main() -> None:
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["cosmic-ray"]
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", default=list(settings["tests"]))
    parser.add_argument("--sample", type=int, default=50, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.dont_write_bytecode = True  # two mutants may have the size and the second of each other
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    for cache in [*Path("longattn").rglob("__pycache__"), *Path("tests").rglob("__pycache__")]:
        shutil.rmtree(cache)
    for name in HEAVY:
        importlib.import_module(name)
    for target in given.targets:
        mutants, all_of_them = drawn_of(target, given.sample, given.seed)
        print(f"{target}: {len(mutants)} of {all_of_them} mutants", flush=True)
        with tempfile.TemporaryDirectory() as name:
            examined(target, settings["tests"][target].split(), mutants, Path(name))


if __name__ == "__main__":
    main()
