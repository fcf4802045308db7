import os
import subprocess
import sys
from functools import partial

import pyarrow as pa
import pytest

from longattn import partitions
from longattn.partitions import placed


def halves(table):
    """Rows of even and odd `n`, and how many there are."""
    n = table["n"].to_numpy()
    return [table.filter(pa.array(n % 2 == odd)) for odd in (0, 1)], len(table)


def doubled(table):
    return pa.table({"n": pa.array(table["n"].to_numpy() * 2)}), table["n"][0].as_py()


def listed(table, of):
    return of, table["n"].to_pylist()


def refuse(table):
    raise ValueError(f"{len(table)} rows, none is allowed")


@pytest.fixture(params=["local", "ray"])
def place(request):
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    with placed(request.param, 10) as found:
        yield found


def test_tables_are_exchanged_replaced_and_looked_at_in_order(place):
    tables = [pa.table({"n": range(start, start + 5)}) for start in range(0, 50, 5)]
    handles, counts = place.exchange(((halves, table) for table in tables), 2)
    assert counts == [5] * 10
    handles, firsts = place.update((doubled, handle) for handle in handles)
    assert firsts == [0, 1]
    jobs = [(partial(listed, of=of), handle) for of, handle in zip("eo", handles, strict=True)]
    assert list(place.each(jobs)) == [
        ("e", list(range(0, 100, 4))),
        ("o", list(range(2, 100, 4))),
    ]


def test_what_a_function_raises_is_raised_as_it_is(place):
    with pytest.raises(ValueError, match=r"^5 rows, none is allowed$"):
        list(place.each([(refuse, pa.table({"n": range(5)}))]))


def test_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with placed("local", 10) as place:
        handles, _ = place.exchange([(halves, pa.table({"n": range(5)}))], 2)
        place.update((doubled, handle) for handle in handles)
        assert len(list(tmp_path.glob("*/*.arrow"))) == 2  # the first two gave way
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    work = """if True:
        import sys, tempfile
        from longattn.partitions import placed
        tempfile.tempdir = sys.argv[1]
        with placed("local", 10):
            print("at work", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", work, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as living:
        for process in (killed, living):
            process.stdout.readline()
        killed.kill()
        killed.wait()
        left = sorted(tmp_path.iterdir())
        for folder in left:
            os.utime(folder / "held", (0, 0))
        with placed("local", 10):
            assert len(left) == 2 and len([folder for folder in left if folder.exists()]) == 1
        living.communicate()
    assert not list(tmp_path.iterdir())


def test_ray_is_taken_where_the_columns_outgrow_this_machine(monkeypatch, ray_cluster):
    monkeypatch.setattr(partitions, "memory", lambda: 2 * partitions.ROW_BYTES * 100)
    for rows, kind in ((100, partitions._OnDisk), (101, partitions._OnRay)):
        with placed("auto", rows) as place:
            assert isinstance(place, kind)
