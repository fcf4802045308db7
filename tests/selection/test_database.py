import os
import subprocess
import sys

import duckdb
import pytest

from longattn.selection.database import LOCKED, database

WORK = """if True:
    import sys, tempfile
    from longattn.selection.database import database
    tempfile.tempdir = sys.argv[1]
    with database(64 * 10**6) as connection:
        connection.execute("CREATE TABLE t AS SELECT hash(range), hash(-range) FROM range(8_000_000)")
        print("at work", flush=True)
        sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as living:
        for process in (killed, living):
            assert process.stdout.readline() == b"at work\n"
        killed.kill()
        killed.wait()
        left = sorted(tmp_path.iterdir())
        assert sum(file.stat().st_size for file in tmp_path.glob("*/spilled/*")) > 2**20
        with database(64 * 10**6):  # may be of processes that are just starting
            assert len(left) == 2 and all(folder.exists() for folder in left)
        for folder in left:
            os.utime(folder / LOCKED, (0, 0))
        with database(64 * 10**6):
            assert len([folder for folder in left if folder.exists()]) == 1
        living.communicate()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "query",
    ["INSTALL httpfs", "LOAD httpfs", "SELECT * FROM '{path}'", "COPY (SELECT 1) TO '{path}'",
     "SET enable_external_access = true"],
)  # fmt: skip
def test_no_extension_is_installed_and_no_file_read(tmp_path, query):
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")
    with database(64 * 10**6) as connection, pytest.raises(duckdb.Error):
        connection.execute(query.format(path=path))
    assert path.read_text() == "a\n1\n"


def test_python_variables_are_no_tables():
    with database(64 * 10**6) as connection, pytest.raises(duckdb.CatalogException):
        connection.execute("SELECT * FROM query")
