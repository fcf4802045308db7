"""The built-in checkpoint and samples: complete, loadable, consistent, small, and accounted for."""

import gzip
import json
from itertools import chain

import fastokens
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaModel

from longattn.builtin import CHECKPOINT, train
from longattn.samples import SAMPLES
from longattn.windows.cutting import sliding_windows

MIB = 2**20
FILES = sorted(SAMPLES.glob("*.jsonl.gz"))


def read(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def encoded(tokenizer):
    """Category -> [(text, ids)]."""
    return {
        path.name.removesuffix(".jsonl.gz"): [
            (row["content"], tokenizer.encode(row["content"]).ids) for row in read(path)
        ]
        for path in FILES
    }


def test_checkpoint_loads_with_no_weight_missing_or_left_over():
    model, report = LlamaModel.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.num_hidden_layers == len(model.layers) == 1
    assert all(torch.isfinite(p).all() and p.float().std() > 0 for p in model.parameters())


def test_tokenizer_is_lossless_and_the_same_in_three_libraries(encoded, tokenizer):
    fast = fastokens.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(CHECKPOINT)
    hostile = "<|begin_of_text|> 中文 \u00a0\r\n\t\t x" + "\U0001f600" * 3
    pairs = [(hostile, tokenizer.encode(hostile).ids), *chain(*encoded.values())]
    for text, ids in pairs:
        flat, _ = fast.encode_batch_flat([text], split_special_tokens=True)
        assert np.frombuffer(flat, np.uint32).tolist() == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert max(ids) < len(auto) == tokenizer.get_vocab_size()
    for text, ids in pairs[:2]:
        assert auto(text)["input_ids"] == ids
    assert auto.bos_token_id is None


def test_samples_give_enough_windows_in_each_category_and_some_documents_none(encoded):
    windows = {
        category: [len(sliding_windows(len(ids), 32768)) for _, ids in documents]
        for category, documents in encoded.items()
    }
    assert len(windows) == 3
    assert sum(map(sum, windows.values())) >= 12
    assert all(sum(counts) >= 4 and min(counts) == 0 for counts in windows.values()), windows


def test_every_sample_is_listed_with_its_licence():
    listed = (SAMPLES / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    for path in FILES:
        for row in read(path):
            assert set(row) == {"content", "source"}
            (line,) = [line for line in listed if f"`{row['source']}`" in line]
            assert any(name in line for name in ("public domain", "MIT", "zlib", "BSD", "PSF"))


def test_shipped_files_stay_small():
    assert sum(f.stat().st_size for f in CHECKPOINT.glob("*.*")) < 12 * MIB
    assert sum(f.stat().st_size for f in FILES) < 3 * MIB


def test_training_reads_no_token_ahead():
    torch.manual_seed(0)
    model = train.build(train.Recipe(layers=2)).eval()
    ids = torch.randint(0, 8192, (1, 40))
    changed = ids.clone()
    changed[:, 25:] = torch.randint(0, 8192, (1, 15))
    with torch.no_grad():
        a, b = (model(input_ids=i).last_hidden_state for i in (ids, changed))
    torch.testing.assert_close(a[:, :25], b[:, :25])
    assert not torch.allclose(a[:, 25:], b[:, 25:])


def test_training_is_repeatable_and_what_it_saves_loads(tmp_path):
    recipe = train.Recipe(context=32, steps=2, hidden_size=32, intermediate_size=32, layers=2)
    documents = [np.arange(i, i + 200, dtype=np.uint16) for i in range(3)]
    first, second = (train.train(recipe, documents, "cpu") for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    train.save(first, tmp_path)
    _, report = LlamaModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report


def test_training_refuses_documents_shorter_than_the_context():
    with pytest.raises(ValueError, match="context=32"):
        train.train(train.Recipe(context=32), [np.zeros(32, np.uint16)], "cpu")
