"""Shares of categories, and short documents packed beside the windows."""

import json
import logging

import numpy as np
import pytest
import xxhash

from longattn.config import Mix
from longattn.errors import ConfigError
from longattn.formats import short_documents
from longattn.formats.export import _told
from longattn.formats.mix import token_budgets
from longattn.samples import SAMPLES
from longattn.windows.tokenizer import load_tokenizer
from tests.formats.made import (
    drawn,
    exported,
    names_of,
    pieces_of,
    read_bytes,
    read_jsonl,
    read_mds,
    read_npy,
    short_rows,
    write_selected,
    write_short,
)

FORMATS = ("megatron", "mds", "npy", "jsonl")


@pytest.fixture
def folder(tmp_path):
    for category, n in (("book", 40), ("code", 20)):
        write_selected(tmp_path, category, drawn(n, 8, 100, n))
    return tmp_path


def told(folder, format):
    return json.loads(read_bytes(f"{folder}/{format}/export.json"))["categories"]


def test_the_scarcest_category_decides_how_much_there_is(folder, caplog):
    caplog.set_level(logging.INFO, "longattn")
    exported(folder, "jsonl", mix=Mix.of({"shares": {"book": 1, "code": "100%"}}))
    assert {name: of["sequences"] for name, of in told(folder, "jsonl").items()} == {
        "book": 20,
        "code": 20,
    }
    assert "mix: book: 50 % of the tokens, 50 % asked: 20 windows, 160 tokens" in caplog.text


@pytest.mark.parametrize("shuffle", [None, 7])
def test_those_are_taken_that_come_first_by_the_hash(folder, shuffle):
    exported(
        folder,
        "jsonl",
        shuffle=shuffle,
        mix=Mix.of({"shares": {"book": 3, "code": 1}, "tokens": 160}),
    )
    rows = [r for path in (folder / "jsonl").glob("*.zst") for r in read_jsonl(path)]
    got = {c: {r["data_id"] for r in rows if r["category"] == c} for c in ("book", "code")}
    for category, n, kept in (("book", 40, 15), ("code", 20, 5)):
        names = [f"{category}-{i:03d}" for i in range(n)]
        names.sort(key=lambda name: xxhash.xxh3_64_intdigest(f"{shuffle or 0}:{name}".encode()))
        assert got[category] == set(names[:kept])


def test_a_share_that_cannot_be_met_is_told_in_a_line(folder, caplog):
    exported(folder, "mds", mix=Mix.of({"shares": {"book": 0.5, "code": 0.5}, "tokens": 600}))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "mix: code: 35.1 % of the tokens, 50 % asked: 300 tokens are wanted, and 160 are there"
    ]
    assert {name: of["tokens"] for name, of in told(folder, "mds").items()} == {
        "book": 296,
        "code": 160,
    }


def test_a_category_without_a_share_is_left_out_and_told(folder, caplog):
    exported(folder, "npy", mix=Mix.of({"shares": {"code": 1}}))
    assert "mix: book has no share: left out" in caplog.text
    assert names_of(folder / "npy") == ["code-00000.csv.gz", "code-00000.npy", "export.json"]


def test_budgets_are_whole_shares():
    mix = Mix.of({"shares": {"a": 0.1, "b": 0.2}})
    assert token_budgets(mix, {"a": 10**15, "b": 2 * 10**15 + 1}) == {"a": 10**15, "b": 2 * 10**15}


@pytest.mark.parametrize(
    ("mix", "line"),
    [
        ({"shares": {}}, "shares: allowed: a share for each category (given: {})"),
        ({"shares": {"a": 0}}, "shares.a: a number above 0 is required"),
        (
            {"shares": {"book": 1}, "packed": [{"category": "web", "path": "x"}]},
            "packed: 'web' has no share",
        ),
        ({"share": {"book": 1}}, "share: no such setting; did you mean shares?"),
        ("/nowhere.yaml", "/nowhere.yaml: there is no such file to be read as a mix"),
    ],
)
def test_a_bad_mix_is_refused_in_one_line(mix, line):
    with pytest.raises(ConfigError) as caught:
        Mix.of(mix)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_share_of_what_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError, match=r"shares\.web: no such category; there are book, code"):
        exported(folder, "mds", mix=Mix.of({"shares": {"web": 1}}))


def mixed(folder, short, **further):
    source = {"category": "web", "path": str(folder / short), "ids_column": "input_ids"}
    return Mix.of({"shares": {"book": 0.5, "web": 0.5}, "packed": [source], **further})


@pytest.mark.parametrize("shuffle", [None, 1])
def test_short_documents_are_packed_whole_into_windows_with_their_bounds(
    folder, monkeypatch, shuffle
):
    monkeypatch.setattr(short_documents, "BUFFER", 32)
    rows = short_rows()
    write_short(folder, rows, files=3)
    mix = mixed(folder, "short", tokens=10**6)
    exported(folder, "mds", mix=mix, shuffle=shuffle)
    samples = read_mds(folder / "mds" / ("" if shuffle else "web"))
    web = [s for s in samples if s["domain"] == "web"]
    assert all(s["length"] == len(s["input_ids"]) <= 8 for s in web)
    assert sorted(s["input_ids"][a:b] for s in web for a, b in s["indices"]) == pieces_of(rows)
    assert all(s["indices"][0][0] == 0 and s["indices"][-1][1] == s["length"] for s in web)
    assert len({s["data_id"] for s in web}) == len(web) < 1.05 * sum(map(len, rows)) / 8
    assert told(folder, "mds")["web"]["documents"] == len(pieces_of(rows))


@pytest.mark.parametrize("format", FORMATS)
def test_packing_and_order_are_the_same_whatever_the_files(folder, format):
    found = []
    for files in (1, 4):
        write_short(folder, short_rows(), files, f"short{files}")
        exported(folder, format, mix=mixed(folder, f"short{files}"), shuffle=2, part_bytes=200)
        names = [name for name in names_of(folder / format) if name != "export.json"]
        found.append({name: read_bytes(f"{folder}/{format}/{name}") for name in names})
    assert found[0] == found[1] and len(found[0]) > 2


def test_npy_pads_packed_windows_and_masks_the_padding(folder):
    rows = short_rows()
    write_short(folder, rows)
    exported(
        folder,
        "npy",
        mix=mixed(folder, "short", tokens=10**6, pad_token=99),
        shuffle=1,
        part_bytes=160,
    )
    found, padding = [], 0
    for path in sorted((folder / "npy").glob("*.npy")):
        ids, bounds = read_npy(path, "<u2")
        mask = np.frombuffer(path.with_suffix(".mask").read_bytes(), np.bool_)
        inside = np.zeros(len(ids), bool)
        for start, stop, _, category, sequence in bounds:
            assert start // 8 == (stop - 1) // 8 == int(sequence)
            inside[start:stop] = True
            if category == "web":
                found.append(ids[start:stop].tolist())
        assert len(ids) % 8 == 0 and np.array_equal(mask, inside)
        assert set(ids[~mask].tolist()) <= {99}
        padding += int((~mask).sum())
    assert sorted(found) == pieces_of(rows)
    assert padding == json.loads((folder / "npy" / "export.json").read_text())["padding"] > 0


def test_documents_of_text_are_tokenized_and_ended(folder, monkeypatch):
    """The sample documents, cut short, against the tokenizer called by hand."""
    monkeypatch.setattr(short_documents, "GROUP_TOKENS", 500)
    monkeypatch.setattr(short_documents, "GROUPS", 2)
    import gzip

    with gzip.open(SAMPLES / "book.jsonl.gz", "rt") as file:
        text = json.loads(next(file))["content"]
    texts = [text[i * 400 : i * 400 + 50 + 7 * i] for i in range(40)]
    lines = [json.dumps({"text": t}) + "\n" for t in texts]
    (folder / "web.jsonl").write_text("".join([*lines, "broken\n"]))
    source = {
        "category": "web",
        "path": str(folder / "web.jsonl"),
        "text_column": "text",
        "end_token": 2,
    }
    mix = Mix.of({"shares": {"web": 1}, "packed": [source]})
    exported(folder, "jsonl", 8192, window=128, mix=mix)
    found = [
        row["input_ids"][a:b]
        for path in (folder / "jsonl").glob("*.zst")
        for row in read_jsonl(path)
        for a, b in row["documents"]
    ]
    tokenizer = load_tokenizer("builtin")
    truth = [[*tokenizer.encode(t.encode()).ids.tolist(), 2] for t in texts]
    assert sorted(found) == pieces_of(truth, 128)


def test_a_source_without_such_a_column_is_refused(folder):
    write_short(folder, short_rows(3))
    source = {"category": "web", "path": str(folder / "short"), "ids_column": "tokens"}
    mix = Mix.of({"shares": {"web": 1}, "packed": [source]})
    with pytest.raises(ConfigError, match=r"0\.parquet has no column 'tokens'"):
        exported(folder, "mds", mix=mix)
    (folder / "a.jsonl").write_text('{"input_ids": [1]}\n')
    source = {"category": "web", "path": str(folder / "a.jsonl"), "ids_column": "input_ids"}
    mix = Mix.of({"shares": {"web": 1}, "packed": [source]})
    with pytest.raises(ConfigError, match=r"a\.jsonl is no Parquet file"):
        exported(folder, "mds", mix=mix)


def test_a_pad_token_outside_the_vocabulary_is_refused(folder):
    with pytest.raises(ConfigError, match="pad_token 100: the vocabulary has 0 to 99"):
        exported(folder, "npy", mix=Mix.of({"shares": {"book": 1}, "pad_token": 100}))


def test_no_password_of_a_source_is_stored():
    source = {"category": "web", "path": "https://me:secret@host/x.jsonl"}
    told = _told(Mix.of({"shares": {"web": 1}, "packed": [source]}))
    assert told["packed"][0]["path"] == "https://***@host/x.jsonl"


def test_a_source_on_an_object_store_is_packed(folder, s3):
    from longattn.storage.files import write_bytes

    write_short(folder, short_rows())
    data = (folder / "short" / "0.parquet").read_bytes()
    write_bytes("s3://bucket/short-source/0.parquet", data)
    exported(folder, "jsonl", mix=mixed(folder, "short"))
    here = {p.name: p.read_bytes() for p in (folder / "jsonl").glob("*.zst")}
    source = {
        "category": "web",
        "path": "s3://bucket/short-source/*.parquet",
        "ids_column": "input_ids",
    }
    mix = Mix.of({"shares": {"book": 0.5, "web": 0.5}, "packed": [source]})
    exported(folder, "jsonl", mix=mix)
    assert {p.name: p.read_bytes() for p in (folder / "jsonl").glob("*.zst")} == here
