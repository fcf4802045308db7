"""Fixtures: a finished run, a real S3 server over HTTP, a small checkpoint."""

import gzip
import json
import os
import shutil
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

import longattn as la
from longattn.samples import SAMPLES
from tests.examples import examples
from tests.s3 import moto_server

settings.register_profile(
    "untimed", max_examples=examples(100), deadline=None
)  # other work on the machine fails no test
settings.load_profile("untimed")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's workers are as nice as this process: at 15, its default, whatever else runs here starves them.
os.environ.setdefault("RAY_worker_niceness", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    import torch  # not by the process that starts the others, which wait for it

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
BUILTIN = SAMPLES.parent / "builtin"
WINDOW = 512


def config(documents, output, checkpoint, **fields):
    """Settings of a run over a copy of the `corpus`, in windows of 512 tokens."""
    values = {
        "sources": [
            {"category": "book", "path": f"{documents}/book/*.jsonl"},
            {"category": "code", "path": f"{documents}/code"},
        ],
        "output": str(output),
        "window": {"tokens": WINDOW},
        "scorer": {"model": checkpoint},
        "workers": {"window": 1, "score": 1},
    }
    return la.Config.parse({**values, **fields})


@pytest.fixture(scope="session", autouse=True)
def _measured_in_short():
    """What `plan` and `bench` measure for seconds they measure for a moment here."""
    from longattn.reports import bench, plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MEASURE_SECONDS", 0.1)
        patch.setattr(bench, "CPU_SECONDS", 0.1)
        yield


@pytest.fixture(scope="session")
def s3():
    """The endpoint of a server with a bucket named `bucket`."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """A one-layer Llama with random weights and the built-in tokenizer: scores differ, fast."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, path)
    return str(path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Documents of two categories, JSONL and Parquet, long and short. Copy it to change it."""
    folder = tmp_path_factory.mktemp("corpus")
    book, code = (_first_document(name) for name in ("book", "python"))
    (folder / "book").mkdir()
    for part in range(3):
        starts = range(part * 40_000, part * 40_000 + 36_000, 9000)
        texts = [*(book[p : p + 7000 + p % 900] for p in starts), "short"]
        lines = "".join(json.dumps({"content": t, "n": 1}) + "\n" for t in texts)
        (folder / "book" / f"{part}.jsonl").write_text(lines)
    (folder / "code").mkdir()
    texts = [code[p : p + 6000] for p in range(0, 48_000, 8000)]
    table = pa.table({"content": texts, "n": range(len(texts))})
    pq.write_table(table, folder / "code" / "a.parquet", row_group_size=2)
    return folder


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory, checkpoint):
    """A whole run, for tests that only look at it."""
    settings = config(corpus, tmp_path_factory.mktemp("finished"), checkpoint)
    return settings, la.run(settings, executor="local")


SHORT = 64  # tokens of the short context of a loss gap


def further_scores(model):
    """Settings of one score of each kind."""
    return [
        {"name": "text", "kind": "measures"},
        {
            "name": "gap",
            "kind": "loss_gap",
            "model": model,
            "short": SHORT,
            "where": [
                {"column": "compression_ratio", "quantiles": [0.2, 0.8]},
                {"column": "ds", "min": 0.01},
            ],
        },
        {"name": "deep", "kind": "attention", "model": model, "layers": [0], "batch": 3},
    ]


@pytest.fixture(scope="session")
def scored(corpus, tmp_path_factory, checkpoint):
    """A run with `further_scores`, over several labelled files a category: copy it to change it."""
    from longattn.pipeline import execution

    sources = [
        {"category": "book", "path": f"{corpus}/book/*.jsonl", "sample": {"fraction": 0.4}},
        {"category": "code", "path": f"{corpus}/code", "sample": {"fraction": 0.4}},
    ]
    settings = config(
        corpus,
        tmp_path_factory.mktemp("scored"),
        checkpoint,
        sources=sources,
        scores=further_scores(checkpoint),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(execution.BLOCK_BYTES, "cpu", 20_000)
        return settings, la.run(settings, executor="local")


def _first_document(name: str) -> str:
    with gzip.open(SAMPLES / f"{name}.jsonl.gz", "rt") as file:
        return json.loads(next(file))["content"]


def pytest_xdist_make_scheduler(config, log):
    """Files stay whole, and those that share a server or a cluster are of one process.

    In place of `--dist loadgroup`, whose groups pytest-xdist 3.8 does not hand on under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class WholeFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return _shared_by(config.rootpath / file) or file

    config.option.loadscopereorder = False  # in the order of collection
    return WholeFiles(config, log)


@cache
def _shared_by(file: Path) -> str | None:
    """The costly fixture that the tests of a file share with those of others."""
    text = file.read_text()
    return "servers" if any(name in text for name in ("gateway", "ray_cluster")) else None
