"""A small model in memory: which versions of it are told apart, what is kept, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save

from longattn.errors import ConfigError
from longattn.storage import remote_model
from longattn.storage.remote_model import (
    fetch_small_files,
    fetch_tensors,
    fetch_whole_model,
    tensor_files,
)

TENSORS = {
    "a": torch.arange(6).reshape(2, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "b2": torch.ones(3),
    "none": torch.zeros(0),
}
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[1]",
    "model.safetensors": save(TENSORS, {"by": "x"}),
}
URL = "memory://small-model"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    put(fs, FILES)
    yield fs
    fs.rm("/small-model", recursive=True)


def put(fs, files, folder="small-model"):
    for name, data in files.items():
        fs.pipe_file(f"/{folder}/{name}", data)


def folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()] if cache.exists() else []


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_what_is_asked_for_is_kept_and_no_more(memory, cache, caplog):
    caplog.set_level("INFO", "longattn")
    small = fetch_small_files(f"{URL}/")
    assert contents(small) == {name: FILES[name] for name in ("config.json", "tokenizer.json")}
    assert caplog.messages == []  # of a few kilobytes
    assert contents(fetch_whole_model(URL)) == FILES
    assert tensor_files(URL) == dict.fromkeys(TENSORS, "model.safetensors")
    caplog.clear()
    path = fetch_tensors(URL, dict.fromkeys(("b", "none"), "model.safetensors"))
    assert caplog.messages == [f"fetching 2 tensors (10 B) of the model {URL} into {cache}"]
    kept = load_file(path)
    assert kept.keys() == {"b", "none"} and torch.equal(kept["b"], TENSORS["b"])
    assert fetch_tensors(URL, {"b": "model.safetensors"}) != path
    kept = load_file(fetch_tensors(URL, dict.fromkeys(TENSORS, "model.safetensors")))
    assert all(torch.equal(kept[name], of) for name, of in TENSORS.items())
    assert len(folders(cache)) == 5 and fetch_small_files(URL) == small


def test_data_begin_where_any_kind_of_number_may(memory):
    """As safetensors itself writes: at a multiple of eight, spaces before it."""
    for name in ("a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"):
        put(memory, {"model.safetensors": save({name: TENSORS["a"]})})
        path = fetch_tensors(URL, {name: "model.safetensors"})
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
        assert torch.equal(load_file(path)[name], TENSORS["a"])


def test_another_time_or_place_is_another_version_where_a_store_tells_no_checksum(memory):
    kept = {fetch_small_files(URL)}
    put(memory, FILES, "small-model/copy")
    kept.add(fetch_small_files(f"{URL}/copy"))
    put(memory, {"config.json": b"[]"})
    kept.add(fetch_small_files(URL))
    assert len(kept) == 3


def test_the_whole_model_is_what_its_index_names_or_the_one_file_or_all(memory):
    put(memory, {"extra.safetensors": FILES["model.safetensors"], "pytorch_model.bin": b"x"})
    assert set(contents(fetch_whole_model(URL))) == {*FILES}
    names = {
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "extra.safetensors"}}
        ).encode()
    }
    put(memory, names)
    assert set(contents(fetch_whole_model(URL))) == {
        "config.json", "tokenizer.json", "model.safetensors.index.json", "extra.safetensors"
    }  # fmt: skip
    memory.rm_file("/small-model/model.safetensors.index.json")
    memory.rm_file("/small-model/model.safetensors")
    put(memory, {"more.safetensors": safetensors({"c": tensor([0, 0])})})
    assert set(contents(fetch_whole_model(URL))) == {
        "config.json", "tokenizer.json", "extra.safetensors", "more.safetensors"
    }  # fmt: skip
    assert tensor_files(URL) == {
        **dict.fromkeys(TENSORS, "extra.safetensors"),
        "c": "more.safetensors",
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_weights_that_can_run_code_are_named_and_not_read(memory, name):
    memory.rm_file("/small-model/model.safetensors")
    with pytest.raises(ValueError, match=r"no weights in \*.safetensors; holds none"):
        fetch_whole_model(URL)
    put(memory, {name: b"x"})
    with pytest.raises(ValueError, match=f"holds only {name}, a pickle, which can run code"):
        fetch_whole_model(URL)


def tensor(offsets, dtype="U8"):
    return {"dtype": dtype, "shape": [offsets[1] - offsets[0]], "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "its header has no length"),
        (bytes(7), "its header has no length"),
        (bytes(100), "its header has no length"),
        (safetensors(b"{}", length=3), "its header has no length"),
        (safetensors(b"{"), "Expecting property name"),
        (safetensors(b"[]"), "not a readable safetensors file: "),
        (safetensors({"a": []}), "not a readable safetensors file: "),
        (safetensors({"a": tensor([0, 5])}, b"four"), "its header points past its end"),
        (safetensors({"a": tensor([-1, 4])}, b"four"), "its header points past its end"),
        (safetensors({"a": tensor([3, 2])}, b"four"), "its header points past its end"),
    ],
)
def test_files_that_are_not_what_they_should_be(memory, data, why):
    put(memory, {"model.safetensors": data})
    for fetch in (tensor_files, lambda url: fetch_tensors(url, {"a": "model.safetensors"})):
        with pytest.raises(
            ValueError, match=r"^memory://small-model/model.safetensors: not a readable [^\n]+$"
        ) as told:
            fetch(URL)
        assert why in str(told.value)


def test_the_smallest_files_and_the_bound_of_a_header(memory, monkeypatch):
    put(memory, {"model.safetensors": safetensors(b"{}")})
    assert tensor_files(URL) == {}
    put(memory, {"model.safetensors": safetensors({"a": tensor([0, 4])}, b"four")})
    assert load_file(fetch_tensors(URL, {"a": "model.safetensors"}))["a"].tolist() == list(b"four")
    size = len(json.dumps({"a": tensor([0, 4])}))
    monkeypatch.setattr(remote_model, "MAX_HEADER", size)
    assert tensor_files(URL) == {"a": "model.safetensors"}
    monkeypatch.setattr(remote_model, "MAX_HEADER", size - 1)
    with pytest.raises(ValueError, match="its header has no length"):
        tensor_files(URL)


def test_a_tensor_or_its_file_that_is_not_there_is_named(memory, cache):
    with pytest.raises(
        ValueError, match=f"^{URL}/model.safetensors: the index promises c, which is not"
    ):
        fetch_tensors(URL, {"a": "model.safetensors", "c": "model.safetensors"})
    with pytest.raises(
        ValueError, match=f"^model {URL}: no file x.safetensors, which is to hold .* c$"
    ):
        fetch_tensors(URL, {"a": "model.safetensors", "c": "x.safetensors"})
    assert folders(cache) == []


@pytest.mark.parametrize(
    "fetch", [fetch_whole_model, lambda url: fetch_tensors(url, {"a": "model.safetensors"})]
)
def test_a_model_that_changes_while_it_is_read_is_not_kept(memory, cache, monkeypatch, fetch):
    read = remote_model._Remote.read

    def changing(model, file, start, stop):
        data = read(model, file, start, stop)
        put(memory, {"model.safetensors": FILES["model.safetensors"]})
        return data

    monkeypatch.setattr(remote_model._Remote, "read", changing)
    with pytest.raises(OSError, match=f"^model {URL}: it changed while it was read; run again$"):
        fetch(URL)
    assert folders(cache) == []


def test_room_for_just_the_model_is_enough(memory, monkeypatch):
    total = sum(map(len, FILES.values()))
    for free, enough in ((total - 1, False), (total, True)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(9, 9, free)
        )
        if enough:
            assert contents(fetch_whole_model(URL)) == FILES
        else:
            with pytest.raises(
                ConfigError,
                match=f"model {URL}: {total} B of it, and {free} B free in .*: set LONGATTN_CACHE",
            ):
                fetch_whole_model(URL)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
def test_a_disk_that_fails_is_a_setting_and_keeps_nothing(memory, cache, monkeypatch, call):
    real = getattr(os, call)

    def full(*args, **options):
        if call == "open" and not args[1] & os.O_CREAT:
            return real(*args, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        ConfigError,
        match=r"^LONGATTN_CACHE .*cache: cannot be written \(No space left on device\): set",
    ):
        fetch_whole_model(URL)
    assert folders(cache) == []


def test_where_nothing_can_be_locked_the_first_who_is_ready_is_taken(memory, cache, monkeypatch):
    """As on some file systems of several nodes: each fetches, and all end with the same folder."""
    rename = Path.rename

    def late(aside, entry):
        shutil.copytree(aside, entry)
        (entry / "of the other").touch()
        return rename(aside, entry)

    def unlockable(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(remote_model.fcntl, "flock", unlockable)
    monkeypatch.setattr(Path, "rename", late)
    kept = fetch_small_files(URL)
    assert "of the other" in contents(kept) and folders(cache) == [kept]


def test_a_folder_where_nothing_can_be_kept_is_a_setting(memory, cache, monkeypatch):
    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(
        ConfigError, match=r"^LONGATTN_CACHE .*: what was fetched cannot be kept there$"
    ):
        fetch_small_files(URL)
    assert folders(cache) == []


def test_an_index_that_is_none_and_a_password_that_was_not_stored(memory):
    for index in (
        b"[",
        b"[]",
        b"{}",
        b'{"weight_map": 1}',
        b'{"weight_map": {"a": 1}}',
        b"[" * 100_000,
    ):
        put(memory, {"model.safetensors.index.json": index})
        with pytest.raises(
            ValueError, match=f"^{URL}/model.safetensors.index.json: not an index of tensors$"
        ):
            fetch_whole_model(URL)
    with pytest.raises(ValueError, match=r"^model http://\*\*\*@h/m: its password was not stored"):
        fetch_small_files("http://***@h/m")
