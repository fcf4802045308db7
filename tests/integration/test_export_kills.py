"""A process killed in the middle of an export, on a disk and on an S3 server: nothing looks whole, and another
one goes on from there."""

import os
import signal
import subprocess
import sys

import pytest

from longattn.formats.export import SUMMARY
from longattn.storage.files import filesystem, list_files, remove
from tests.formats.made import drawn, exported, names_of, read_bytes, write_selected

KILLED = """
import os, signal, sys
from longattn.formats import writing
from longattn.formats.export import Export, export
folder, format, after = sys.argv[1:]
true, done = writing.prefix_of, []
def prefix_of(*of):
    done.append(1)
    if len(done) > int(after):
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*of)
writing.prefix_of = prefix_of
export(folder, Export(vocab_size=100, window=8, format=format, shuffle=1, part_bytes=60))
"""


def contents(folder):
    return {name: read_bytes(f"{folder}/{name}") for name in names_of(folder)}


@pytest.mark.parametrize("format", ["npy", "mds"])
@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_killed_export_leaves_nothing_that_looks_whole_and_is_gone_on_with(
    tmp_path, gateway, where, format
):
    folder = str(tmp_path) if where == "disk" else f"s3://bucket/killed-{format}"
    for category, seed in (("book", 1), ("code", 2)):
        write_selected(folder, category, drawn(40, 8, 100, seed))
    exported(folder, format, shuffle=1, part_bytes=60)
    place = f"{folder}/{format}"
    whole = contents(place)
    for url in list_files(place, ""):
        remove(url)
    kept = set()
    # `npy` asks where each part goes once before it is read, and once when it is whole.
    parts = sum(name.endswith((".npy", ".mds")) for name in whole)
    for round_ in range(2):
        after = (parts - len(kept) if format == "npy" else 0) + 5
        result = subprocess.run(
            [sys.executable, "-c", KILLED, folder, format, str(after)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=200,
        )
        assert result.returncode == -signal.SIGKILL
        left = contents(place)
        assert SUMMARY not in left and "index.json" not in left and left.items() <= whole.items()
        last = ".csv.gz" if format == "npy" else ".mds"
        now = {name for name in left if name.endswith(last)}
        assert kept < now, round_
        kept = now
    fs, _ = filesystem(folder)
    times = {name: fs.info(f"{place}/{name}".removeprefix("s3://")) for name in kept}
    exported(folder, format, shuffle=1, part_bytes=60)
    assert contents(place) == whole
    after = {name: fs.info(f"{place}/{name}".removeprefix("s3://")) for name in kept}
    key = "mtime" if where == "disk" else "LastModified"
    assert {name: info[key] for name, info in after.items()} == {
        name: info[key] for name, info in times.items()
    }
    if where == "disk":
        assert not list(tmp_path.glob("**/.longattn-*"))
