"""A scoring model on a store: what of it is fetched, and kept; what is not there, or other than it says."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import s3fs
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import longattn as la
from longattn.models import model_folder, whole_model
from longattn.scoring.checkpoint import open_checkpoint
from longattn.scoring.further_scores import FurtherScorer, table_parts, weights_fingerprint
from longattn.settings.scores import Score
from longattn.storage import remote_model
from longattn.storage.remote_model import SMALL_FILES, fetch_tensors
from longattn.text import size
from longattn.windows.tokenizer import load_tokenizer
from tests.conftest import BUILTIN
from tests.s3 import CountingProxy, environment

LAYERS = 6
NEEDED = {"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
          "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of several layers in one file, and in several, with the built-in tokenizer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=64,
            intermediate_size=2048,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            initializer_range=0.4,
        )
    ).to(torch.bfloat16)
    folders = {}
    for name, shard in (("one", "1GB"), ("shards", "2MB")):
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name], max_shard_size=shard)
        shutil.copy(BUILTIN / "tokenizer.json", folders[name])
    assert len(list(folders["shards"].glob("*.safetensors"))) > 2
    return folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of this process."""
    monkeypatch.setenv("LONGATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["one", "shards"])
def uploaded(request, whole, s3, tmp_path):
    """A URL, the folder of which it is a copy, and a proxy that counts what is fetched."""
    folder, url = whole[request.param], f"s3://bucket/{tmp_path.name}/{request.param}"
    s3fs.S3FileSystem(endpoint_url=s3).put(f"{folder}/", f"{url}/", recursive=True)
    proxy = CountingProxy(s3)
    s3fs.S3FileSystem.clear_instance_cache()
    with environment(AWS_ENDPOINT_URL=proxy.endpoint):
        yield url, folder, proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.close()


def put(url, name, data):
    s3fs.S3FileSystem().pipe_file(f"{url}/{name}", data)


def test_only_the_needed_tensors_are_fetched_and_once(uploaded, cache):
    url, folder, proxy = uploaded
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    needed = sum(tensors[name].nbytes for name in NEEDED)
    whole = sum(tensor.nbytes for tensor in tensors.values())
    small = sum((folder / name).stat().st_size for name in ("config.json", "tokenizer.json"))
    checkpoint, local = open_checkpoint(url), open_checkpoint(str(folder))
    assert needed < proxy.received < needed + small + 60_000 < whole / 3
    assert checkpoint.fingerprint() == local.fingerprint()
    assert checkpoint.name == url
    for name in checkpoint.files:
        assert torch.equal(checkpoint.read(name), local.read(name))
    (kept,) = cache.rglob("*.safetensors")
    assert set(load_file(kept)) == NEEDED
    assert load_tokenizer(url).fingerprint == load_tokenizer(str(folder)).fingerprint
    fetched = proxy.received
    open_checkpoint(url)
    load_tokenizer(url)
    assert proxy.received - fetched < 40_000  # headers, and which versions there are


@pytest.mark.parametrize("uploaded", ["one"], indirect=True)
def test_another_version_is_fetched_and_the_same_at_another_url_is_not(uploaded, cache):
    url, folder, proxy = uploaded
    before = open_checkpoint(url)
    first = before.fingerprint()
    fs = s3fs.S3FileSystem()
    fs.copy(url, f"{url}-copy", recursive=True)
    fetched = proxy.received
    assert open_checkpoint(f"{url}-copy").fingerprint() == first
    assert proxy.received - fetched < 60_000
    file = before.files["embed_tokens.weight"]
    (name,) = (p.name for p in folder.glob("*.safetensors") if file[1] in load_file(p))
    tensors = load_file(folder / name)
    tensors[file[1]] = tensors[file[1]] * 2
    save_file(tensors, cache / "changed", metadata={"format": "pt"})
    put(url, name, (cache / "changed").read_bytes())
    again = open_checkpoint(url)
    assert again.fingerprint() != first
    assert torch.equal(again.read("embed_tokens.weight"), tensors[file[1]])


@pytest.mark.parametrize("uploaded", ["shards"], indirect=True)
def test_scores_are_those_of_the_local_folder(uploaded):
    url, folder, _ = uploaded
    ids_bl = np.random.default_rng(0).integers(0, 8192, (2, 256))
    there, here = (la.AttentionScorer.from_pretrained(str(m), device="cpu") for m in (url, folder))
    assert torch.equal(there.score(ids_bl).ds, here.score(ids_bl).ds)
    text = "A text, and a text again. " * 30
    assert torch.equal(there.score_text(text).ds, here.score_text(text).ds)


@pytest.mark.parametrize("uploaded", ["shards"], indirect=True)
def test_processes_and_threads_that_come_at_once_fetch_once(uploaded, cache):
    url, folder, proxy = uploaded
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {name: index[name] for name in NEEDED}
    code = f"""
from longattn.storage.remote_model import fetch_tensors
print(fetch_tensors({url!r}, {tensors!r}))
"""
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    with ThreadPoolExecutor(8) as pool:
        mine = {str(path) for path in pool.map(lambda _: fetch_tensors(url, tensors), range(8))}
    said = {other.communicate(timeout=120)[0].strip() for other in others}
    assert mine == said and len(mine) == 1
    (kept,) = cache.rglob("*.safetensors")
    assert {str(kept)} == mine and set(load_file(kept)) == NEEDED
    assert proxy.received < 1.2 * kept.stat().st_size + 10 * 20_000
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [kept.parent.name]


@pytest.mark.parametrize("uploaded", ["shards"], indirect=True)
def test_a_fetch_that_was_killed_leaves_nothing_that_is_taken(uploaded, cache, monkeypatch):
    url, folder, _ = uploaded

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(remote_model.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            open_checkpoint(url)
    assert not list(cache.rglob("*.safetensors"))
    assert open_checkpoint(url).fingerprint() == open_checkpoint(str(folder)).fingerprint()


# --------------------------------------------------------------------------- a whole model


def test_a_whole_model_is_fetched_once_and_nothing_beside_it(uploaded, cache, caplog):
    url, folder, proxy = uploaded
    for name in ("pytorch_model.bin", "modeling_own.py", "notes.txt", "more/x.safetensors"):
        put(url, name, b"x" * 100_000)
    with caplog.at_level("INFO", "longattn"):
        kept = Path(whole_model(url))
    wanted = {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}
    for name in SMALL_FILES:
        if (folder / name).is_file():
            wanted[name] = (folder / name).read_bytes()
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == wanted
    total = sum(map(len, wanted.values()))
    assert total < proxy.received < total + 60_000
    assert f"fetching the model {url} ({size(total)}) into {cache}" in caplog.text
    fetched = proxy.received
    assert whole_model(url) == str(kept)
    assert weights_fingerprint(url) == weights_fingerprint(str(folder))
    assert proxy.received - fetched < 80_000  # which versions there are


@pytest.mark.parametrize("uploaded", ["shards"], indirect=True)
def test_processes_that_come_at_once_fetch_a_whole_model_once(uploaded, cache):
    url, _, proxy = uploaded
    code = f"from longattn.models import whole_model; print(whole_model({url!r}))"
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    mine = whole_model(url)
    assert {other.communicate(timeout=120)[0].strip() for other in others} == {mine}
    total = sum(path.stat().st_size for path in Path(mine).iterdir())
    assert total < proxy.received < 1.2 * total + 3 * 60_000
    assert [path for path in cache.iterdir() if path.is_dir()] == [Path(mine)]


@pytest.mark.parametrize("uploaded", ["one"], indirect=True)
def test_weights_that_change_between_the_driver_and_an_actor_are_refused(uploaded):
    url, folder, _ = uploaded
    score = Score(name="gap", kind="loss_gap", model=url, short=8)
    parts = table_parts(score, window=64, min_distance=16, tokenizer=None, dtype="float32")
    (name,) = (path.name for path in folder.glob("*.safetensors"))
    put(url, name, (folder / name).read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=f"model {url}: it changed since the run began"):
        FurtherScorer(score, parts, "cpu")


def test_a_whole_model_that_is_not_there_or_does_not_fit(copied, monkeypatch):
    def refused():
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            whole_model(copied)
        return str(caught.value)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
        assert "and 1 kB free in" in refused()
    index = "model.safetensors.index.json"
    weights = json.loads(s3fs.S3FileSystem().cat_file(f"{copied}/{index}"))["weight_map"]
    first = sorted(weights.values())[0]
    s3fs.S3FileSystem().rm_file(f"{copied}/{first}")
    assert refused() == f"model {copied}: no file {first}, which its index names"
    for bad in ("../x.safetensors", "x.bin"):
        put(copied, index, json.dumps({"weight_map": {"x": bad}}).encode())
        assert refused() == f"{copied}/{index}: {bad!r} is no safetensors file beside it"
    put(copied, index, b"[]")
    assert refused() == f"{copied}/{index}: not an index of tensors"
    s3fs.S3FileSystem().rm_file(f"{copied}/config.json")
    assert "no config.json there" in refused()


def test_a_config_that_is_kept_holds_no_password_of_a_scores_model():
    score = {"name": "gap", "kind": "loss_gap", "model": "https://reader:hidden-secret@host/m"}
    made = la.Config.parse(
        {"sources": [{"category": "a", "path": "x"}], "output": "o", "scores": [score]}
    )
    assert "hidden-secret" not in made.to_yaml()
    assert "https://***@host/m" in made.to_yaml()


# --------------------------------------------------------------------------- what is not as it should be


def refusal(url, kind=ValueError):
    with pytest.raises(kind) as caught:
        open_checkpoint(url)
    assert "\n" not in str(caught.value)
    assert "hidden-secret" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copied(whole, s3, tmp_path):
    url = f"s3://bucket/{tmp_path.name}/broken"
    s3fs.S3FileSystem().put(f"{whole['shards']}/", f"{url}/", recursive=True)
    return url


def test_what_is_missing_or_wrong_is_named(copied, whole, s3):
    fs = s3fs.S3FileSystem()
    assert refusal("s3://bucket/nowhere") == (
        "model s3://bucket/nowhere: no config.json there, so no checkpoint"
    )
    assert "no config.json there" in refusal("s3://no-such-bucket/x")
    index = json.loads((whole["shards"] / "model.safetensors.index.json").read_text())
    shard = index["weight_map"]["model.embed_tokens.weight"]
    put(copied, shard, b"\xff" * 64)
    assert refusal(copied) == (
        f"{copied}/{shard}: not a readable safetensors file: its header has no length"
    )
    fs.rm_file(f"{copied}/{shard}")
    assert f"no file {shard}, which is to hold the tensor model.embed_tokens" in refusal(copied)
    for name in fs.ls(copied):
        if name.endswith((".safetensors", ".index.json")):
            fs.rm_file(name)
    assert refusal(copied) == f"model {copied}: no weights in *.safetensors; holds none"
    put(copied, "pytorch_model.bin", b"x")
    assert "holds only pytorch_model.bin, a pickle" in refusal(copied)
    put(copied, "config.json", b"{}")
    assert refusal(copied).startswith(f"{copied}/config.json: transformers cannot read it")


def test_the_cache_is_in_the_users_cache_folder_unless_one_is_named(monkeypatch, tmp_path):
    assert remote_model.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LONGATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert remote_model.cache_folder() == tmp_path / "xdg/longattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert remote_model.cache_folder() == tmp_path / ".cache/longattn"
    monkeypatch.setenv("LONGATTN_CACHE", "~/models")
    assert remote_model.cache_folder() == tmp_path / "models"


def test_a_header_that_points_past_the_end_or_lacks_a_tensor(copied, whole):
    index = json.loads((whole["shards"] / "model.safetensors.index.json").read_text())
    shard = index["weight_map"]["model.embed_tokens.weight"]
    for offsets in ([0, 1 << 40], [0, 17], [-1, 15], [8, 4]):
        of = {"dtype": "F32", "shape": [2, 2], "data_offsets": offsets}
        head = json.dumps({"model.embed_tokens.weight": of}).encode()
        put(copied, shard, len(head).to_bytes(8, "little") + head + b"\0" * 16)
        assert "its header points past its end" in refusal(copied)
    save_file({"other": torch.zeros(2)}, "/tmp/other.safetensors")
    put(copied, shard, Path("/tmp/other.safetensors").read_bytes())
    Path("/tmp/other.safetensors").unlink()
    assert f"{copied}/{shard}: the index promises" in refusal(copied)


def test_a_cache_that_cannot_be_written_is_a_setting(copied, monkeypatch):
    monkeypatch.setenv("LONGATTN_CACHE", "/proc/longattn")
    said = refusal(copied)
    assert said.startswith("LONGATTN_CACHE /proc/longattn: cannot be written (")
    assert "set LONGATTN_CACHE to a folder" in said


def test_a_scheme_without_its_package_and_credentials_in_the_url_are_refused():
    assert "gs:// lacks a package" in refusal("gs://bucket/model")
    said = refusal("s3://KEY:hidden-secret@bucket/model")
    assert "no credentials are taken from a URL" in said
    assert "password was not stored" in refusal("http://***@host/model")


# --------------------------------------------------------------------------- other stores


def test_a_web_server_with_ranges_and_without_marks(whole, monkeypatch):
    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        ranges = marks = True

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            data, status, first = path.read_bytes(), 200, 0
            asked = self.headers.get("Range") if self.ranges else None
            length = len(data)
            if asked:
                first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
                data, status = data[first : last + 1], 206
            self.send_response(status)
            self.send_header("Accept-Ranges", "bytes" if self.ranges else "none")
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{length}")
            if self.marks:
                self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(whole["one"])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://reader:hidden-secret@127.0.0.1:{server.server_port}"
    try:
        checkpoint = open_checkpoint(url)
        assert checkpoint.fingerprint() == open_checkpoint(str(whole["one"])).fingerprint()
        assert checkpoint.name == f"http://***@127.0.0.1:{server.server_port}"
        monkeypatch.setattr(Handler, "marks", False)
        assert "give a local folder" in refusal(f"{url}/.")
    finally:
        server.shutdown()
        server.server_close()


def test_a_model_in_memory_and_a_file_url_are_taken(whole):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{whole['shards']}/", "/model/", recursive=True)
    local = open_checkpoint(str(whole["shards"])).fingerprint()
    assert open_checkpoint("memory://model").fingerprint() == local
    settings = la.Config.parse(
        {
            "sources": [{"category": "a", "path": "x"}],
            "output": "o",
            "scorer": {"model": f"file://{whole['one']}"},
        }
    )
    assert model_folder(settings.scorer.model) == whole["one"]
    memory.rm("/model", recursive=True)


def test_files_of_many_requests_are_whole(whole, monkeypatch):
    import fsspec

    monkeypatch.setattr(remote_model, "PIECE", 30_000)
    memory = fsspec.filesystem("memory")
    memory.put(f"{whole['one']}/", "/pieces/", recursive=True)
    kept = Path(whole_model("memory://pieces"))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (kept / name).read_bytes() == (whole["one"] / name).read_bytes()
    path = fetch_tensors("memory://pieces", dict.fromkeys(NEEDED, "model.safetensors"))
    tensors = load_file(whole["one"] / "model.safetensors")
    assert all(torch.equal(of, tensors[name]) for name, of in load_file(path).items())
    # As safetensors itself writes: the data begin where any of its kinds of number may.
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert not path.stat().st_mode & 0o133  # its owner alone may write it, and nobody run it
    model, cut = remote_model._Remote("memory://pieces"), "model.safetensors"
    file = remote_model._File(cut, 100, "of before it was cut")
    memory.pipe_file(f"/pieces/{cut}", b"x" * 80)
    with pytest.raises(OSError, match=r"model\.safetensors: 70 of 90 bytes came"):
        model.read(file, 10, 100)
    for length in (0, 7, 8, 9):
        memory.pipe_file("/pieces/model.safetensors", b"\0" * length)
        with pytest.raises(ValueError, match="not a readable safetensors file: its header has no"):
            fetch_tensors("memory://pieces", dict.fromkeys(NEEDED, "model.safetensors"))
    memory.rm("/pieces", recursive=True)
