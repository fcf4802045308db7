"""How a file appears whole: which calls of the system make it so, and in which order."""

import os
from pathlib import Path

import pytest

from longattn.storage import files
from longattn.storage.files import list_files, staged


def test_a_file_is_synced_renamed_and_its_folder_synced(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle):
        calls.append(("fsync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        fsync(handle)

    def renamed(path, target):
        inode = path.stat().st_ino
        result = replace(path, target)
        assert target.stat().st_ino == inode  # the very file, not a copy of its bytes
        calls.append(("rename", str(path), str(target)))
        return result

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    target = tmp_path / "a" / "x.json"
    with staged(str(target)) as aside:
        aside.write_bytes(b"whole")
    assert calls == [
        ("fsync", str(aside)),
        ("rename", str(aside), str(target)),
        ("fsync", str(tmp_path / "a")),
    ]
    assert aside.parent == target.parent and target.read_bytes() == b"whole"


def test_a_file_that_cannot_be_synced_does_not_appear(tmp_path, monkeypatch):
    def failing(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"), staged(str(tmp_path / "x")) as aside:
        aside.write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_hidden_files_are_not_listed(tmp_path):
    for name in (".hidden.parquet", "seen.parquet", "other.json"):
        (tmp_path / name).write_bytes(b"xy")
    assert list_files(str(tmp_path), ".parquet") == {str(tmp_path / "seen.parquet"): 2}
