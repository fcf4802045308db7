import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.reports.inspection import (
    inspect_window,
    inspection_page,
    labelled_window,
    print_inspection,
    text_window,
)
from longattn.reports.passages import OVER_UNIFORM, OVER_USUAL, _segments, printable
from longattn.reports.report import uniform_ds
from longattn.text import digits
from tests.reports.test_report import HOSTILE, Page


def recurring(passage: str, words: int = 900) -> str:
    """Text that has the passage at both ends and nothing else again: made-up words in between."""
    draw = random.Random(1)
    between = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(words)]
    return f"{passage} {' '.join(between)} {passage}"


@pytest.fixture(scope="module")
def row(finished):
    settings, _ = finished
    table = pq.read_table(f"{settings.output}/labelled/book")
    return settings.output, table.slice(3, 1).to_pylist()[0]


def test_the_far_map_sums_to_the_stored_scores(row):
    output, stored = row
    found = inspect_window(labelled_window(output, stored["data_id"]))
    np.testing.assert_allclose(found.ds_h, stored["ds_heads"], rtol=1e-5)
    tokens = np.diff(found.edges)
    np.testing.assert_allclose(found.all_hqk.sum(2), np.tile(tokens, (2, 1)), rtol=1e-6)
    assert np.all(found.far_hqk <= found.all_hqk + 1e-9)
    assert np.isnan(found.times_qk[np.triu_indices(len(tokens), 1)]).all()
    null = uniform_ds(512, 128)
    assert found.far_uniform_qk.sum() / 512 == pytest.approx(null)
    assert found.uniform_qk.sum() == pytest.approx(512)


def test_with_a_bos_it_is_what_the_scorer_sees(row):
    output, stored = row
    window = labelled_window(output, stored["data_id"])
    found = inspect_window(dataclasses.replace(window, bos=7))
    scorer = la.AttentionScorer.from_pretrained(window.model)
    truth = scorer.score(np.concatenate([[7], window.ids[:-1]]), window.min_distance).ds[0]
    np.testing.assert_allclose(found.ds_h, truth.numpy(), rtol=1e-5)


def test_one_head_is_shown_alone_and_pairs_are_far_apart(row):
    output, stored = row
    window = labelled_window(output, stored["data_id"])
    mean, one = (inspect_window(window, head=head) for head in (None, 1))
    np.testing.assert_allclose(one.far_given_q, mean.far_hqk[1].sum(1) / np.diff(mean.edges))
    assert not np.allclose(one.times_qk, mean.times_qk, equal_nan=True)
    for pair in [*mean.pairs, *one.pairs]:
        assert pair.times >= max(OVER_UNIFORM, OVER_USUAL * pair.usual)
        assert pair.reader.stop - pair.read.start > window.min_distance
        for part in (pair.read, pair.reader):
            text = "".join(text for text, _ in part.segments)
            assert text.strip("\ufffd") in stored["content"]
    with pytest.raises(ValueError, match=r"--head 2: .* has heads 0 to 1"):
        inspect_window(window, head=2)


def test_other_weights_than_those_of_the_folder_are_refused(row):
    output, stored = row
    window = dataclasses.replace(labelled_window(output, stored["data_id"]), model="builtin")
    with pytest.raises(ValueError, match="not the weights"):
        inspect_window(window)
    with pytest.raises(ValueError, match="no labelled window 'book-0-0'"):
        labelled_window(output, "book-0-0")


def test_a_character_is_never_cut_by_a_mark():
    data = "aé漢".encode()
    mask = np.array([0, 1, 0, 0, 1, 0], bool)
    assert list(_segments(data, mask)) == [("a", False), ("é", True), ("漢", False)]


def test_text_of_the_corpus_does_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(recurring(HOSTILE + " and \x1b[31mred\x1b]0;title\x07 text; "))
    found = inspect_window(text_window(str(path), "builtin", 8192), device="cpu")
    best = found.pairs[0]
    assert best.read.start == 0 and best.reader.stop >= found.edges[-2], "both ends"
    page = Page(inspection_page(found))
    assert not [e for e, _ in page.elements if e == "img"]
    assert "<script>alert(1)" in page.text and any(e == "mark" for e, _ in page.elements)
    console = Console(width=100, force_terminal=True)
    with console.capture() as captured:
        print_inspection(found, console)
    shown = captured.get()
    assert "\x1b]0" not in shown and "\u202e" not in shown and "\x07" not in shown
    assert "\x1b[31m" not in shown
    assert printable("a\x1b[2J\u202eb\tc\n") == "a\ufffd[2J\ufffdb    c\n"


def test_where_no_pair_stands_out_it_is_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the same words again and again; " * 200)  # as much at any place so far apart
    found = inspect_window(text_window(str(path), "builtin", 1024), device="cpu")
    assert found.pairs == []
    console = Console(width=100)
    with console.capture() as captured:
        print_inspection(found, console)
    text = Page(inspection_page(found)).text
    for shown in (captured.get(), text):
        assert "No pair of passages stands out" in re.sub(r"\s+", " ", shown)
    assert "times uniform," not in text


def test_it_says_whether_the_window_was_kept_and_its_page_lies_in_the_output(
    row, monkeypatch, tmp_path
):
    output, _ = row
    monkeypatch.chdir(tmp_path)
    kept = pq.read_table(f"{output}/selected/book").to_pylist()
    ids = {r["data_id"] for r in kept}
    dropped = [
        i for i in pq.read_table(f"{output}/labelled/book")["data_id"].to_pylist() if i not in ids
    ]
    for data_id, fate in ((kept[0]["data_id"], "kept"), (dropped[0], "dropped")):
        call = CliRunner().invoke(app, ["inspect", output, data_id])
        assert call.exit_code == 0, call.output
        page = f"{output}/inspections/{data_id}.html"
        assert f"written: {page}" in call.output and not list(tmp_path.iterdir())
        text = re.sub(r"\s+", " ", Page(Path(page).read_text()).text)
        assert f"{fate}by the last selection: LDS kept from" in text
        if fate == "kept":
            assert f"Kept: LDS {digits(kept[0]['lds'])}, kept from" in call.output
            assert f"{digits(kept[0]['lds'])}LDS" in text


def test_the_command_shows_and_writes_a_page(row, tmp_path):
    output, stored = row
    page = tmp_path / "page.html"
    call = CliRunner().invoke(app, ["inspect", output, stored["data_id"], "--html", str(page)])
    assert call.exit_code == 0, call.output
    assert f"DS {stored['ds']:.4f}" in call.output and f"written: {page}" in call.output
    data = Page(page.read_text()).data
    assert len(data["maps"]) == 1 + len(stored["ds_heads"])
    sums = [np.dot(given, np.diff(data["edges"])) / 512 for given in data["given"][1:]]
    np.testing.assert_allclose(sums, stored["ds_heads"], rtol=1e-5)
    assert json.dumps(stored["source"]).strip('"') in page.read_text()


def test_without_an_id_the_best_median_and_worst_of_each_category_are_listed(finished):
    output = finished[0].output
    call = CliRunner().invoke(app, ["inspect", output])
    assert call.exit_code == 0, call.output
    assert call.output.splitlines()[-1] == f"look into one: longattn inspect {output} DATA_ID"
    lines = [line.split() for line in call.output.splitlines()[1:-1]]
    for place, category in enumerate(("book", "code")):
        table = pq.read_table(f"{output}/labelled/{category}").sort_by("data_id")
        lds = la.long_distance_scores(table["ds"].to_numpy(), table["variance"].to_numpy())
        order = np.argsort(-lds, kind="stable")
        chosen = [order[0], order[len(order) // 2], order[-1]]
        kept = pq.read_table(f"{output}/selected/{category}")["data_id"].to_pylist()
        ids = [table["data_id"][int(i)].as_py() for i in chosen]
        assert lines[3 * place : 3 * place + 3] == [
            [data_id, rank, digits(lds[i]), "yes" if data_id in kept else "no"]
            for data_id, rank, i in zip(ids, ("best", "median", "worst"), chosen, strict=True)
        ]


def test_a_text_leaves_no_page_unless_one_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.txt"
    path.write_text("the same words again and again; " * 100)
    call = CliRunner().invoke(app, ["inspect", "--text", str(path)])
    assert call.exit_code == 0 and list(tmp_path.iterdir()) == [path]
    assert call.output.splitlines()[-1] == "no page was written; --html FILE writes one"
    call = CliRunner().invoke(app, ["inspect", "--text", str(path), "--html", "page.html"])
    assert call.exit_code == 0 and (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "OUTPUT and DATA_ID, or --text FILE"),
        (["/nowhere"], "/nowhere: no run has written here"),
        (["out", "a-b-0", "--text", "x"], "OUTPUT and DATA_ID, or --text FILE"),
        (["/nowhere", "a-b-0"], "/nowhere: no run has written here"),
        (["--text", "/nowhere.txt"], "/nowhere.txt: no such file"),
        (["--text", "{short}"], "3 tokens; 128 or more"),
    ],
)
def test_what_cannot_be_inspected_is_told(arguments, told, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("a b c")
    filled = [argument.format(short=short) for argument in arguments]
    call = CliRunner().invoke(app, ["inspect", *filled])
    assert call.exit_code == 2
    assert told in re.sub(r"[\s│]+", " ", call.stderr)
