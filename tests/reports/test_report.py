import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.reports import report, report_windows
from longattn.reports.page import render
from longattn.reports.report import report_page, uniform_ds, write_report
from longattn.resume.fingerprint import own_folder
from longattn.storage.files import write_json
from longattn.storage.output_folder import OutputFolder
from longattn.text import digits, duration, share, short, size
from tests.labelled import labelled_table, score_parts, write_labelled, write_score_table

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e</pre></script>"


class Page(HTMLParser):
    """The elements of a page, its JSON data, and the text outside of scripts and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data, self.text = None, ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = "data" if dict(attrs).get("id") == "data" else tag

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "data":
            self.data = json.loads(data)
        elif not self._inside:
            self.text += data


def selected(output, n=60, text=None, categories=("a", "b"), keep=None) -> str:
    """A selected folder of drawn scores, as a run leaves it."""
    rng = np.random.default_rng(5)
    for category in categories:
        ids = [f"{category}-{i:04d}" for i in range(n)]
        table = labelled_table(category, ids, rng.normal(0.3, 0.02, n), rng.gamma(3, 1e-7, n))
        if text:
            column = table.column_names.index("content")
            table = table.set_column(column, "content", [[text] * n])
        write_labelled(output, category, table)
    own_folder(str(output), score_parts(), None)
    la.select(str(output), keep=keep or {"fraction": 0.25})
    return str(output)


def test_the_page_counts_what_the_folder_holds(tmp_path):
    output = selected(tmp_path)
    page = Page(Path(write_report(output)).read_text())
    assert [c["name"] for c in page.data["categories"]] == ["a", "b"]
    for category in page.data["categories"]:
        stored = pq.read_table(f"{output}/selected/{category['name']}")
        assert (category["windows"], category["kept"]) == (60, 15) and len(stored) == 15
        assert category["threshold"] == stored["lds"].to_numpy().min()
        for histogram in category["histograms"].values():
            assert (sum(histogram["kept"]), sum(histogram["dropped"])) == (15, 45)
        at_least = category["histograms"]["ranked"]["edges"]
        kept = np.flatnonzero(category["histograms"]["ranked"]["kept"])
        assert at_least[kept[0] + 1] >= category["threshold"]
    lowest, highest = (
        f(pq.read_table(f"{output}/labelled/a")["ds"].to_numpy()) for f in (min, max)
    )
    assert page.data["categories"][0]["scale"]["ds"]["low"] == lowest
    assert page.data["categories"][0]["scale"]["ds"]["high"] == highest


def test_excerpts_are_the_ends_of_the_order_and_the_neighbours_of_the_threshold(tmp_path):
    output = selected(tmp_path, categories=("a",))
    rows = pq.read_table(f"{output}/labelled/a").to_pylist()
    lds = la.long_distance_scores([r["ds"] for r in rows], [r["variance"] for r in rows])
    order = [rows[int(i)]["data_id"] for i in np.argsort(-lds, kind="stable")]
    shown = re.findall(r"(a-\d{4}) ·", Page(report_page(output)).text)
    assert shown == [order[0], order[14], order[15], order[-1]]


def test_hostile_text_stays_text(tmp_path):
    output = selected(tmp_path, text=HOSTILE, categories=("a",))
    page = Page(report_page(output))
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert not [tag for tag, _ in page.elements if tag == "img"]
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    assert len(scripts) == 5  # data, d3, plot, figures, report
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]


def test_data_cannot_end_its_script():
    text = render("base.html", script="report.js", data={"x": HOSTILE + "<!--"}, title=HOSTILE)
    page = Page(text)
    assert page.data == {"x": HOSTILE + "<!--"}
    assert "<title>" + HOSTILE not in text


def test_nothing_is_asked_of_the_network(tmp_path):
    page = Page(report_page(selected(tmp_path)))
    links = [attrs[n] for _, attrs in page.elements for n in ("src", "href") if n in attrs]
    assert links and all(link.startswith("#") for link in links)
    (policy,) = [
        a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_the_page_does_not_grow_with_the_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PAGE_POINTS", 200)
    few = report_page(selected(tmp_path / "few", n=200))
    many = report_page(selected(tmp_path / "many", n=3000))
    assert len(many) < len(few) * 1.02
    assert "fixed sample of 200 of 6,000 windows" in Page(many).text


def test_over_the_limit_whole_files_are_left_out_and_it_is_said(tmp_path, monkeypatch):
    output = selected(tmp_path, n=40)
    for start in range(3):
        table = labelled_table(
            "a", [f"a-x{start}{i:03d}" for i in range(40)], [0.3] * 40, [1e-7] * 40
        )
        write_labelled(output, "a", table)
    la.select(output, keep={"fraction": 0.5})
    monkeypatch.setattr(report, "MAX_ROWS", 60)
    monkeypatch.setattr(report_windows, "READERS", 1)
    text = Page(report_page(output)).text
    assert re.search(r"of 80 of 200\s+windows", text)


def test_tokens_that_two_kept_windows_share_are_counted_once(tmp_path):
    table = labelled_table("a", ["d0", "d1", "d2"], [0.3, 0.2, 0.1], [1e-7] * 3, window=8)
    values = {"document_id": ["d", "d", "e"], "token_start": [0, 5, 0], "token_stop": [8, 13, 8]}
    for name, column in values.items():
        index = table.column_names.index(name)
        table = table.set_column(index, table.schema.field(name), [column])
    write_labelled(tmp_path, "a", table)
    own_folder(str(tmp_path), score_parts(), None)
    la.select(str(tmp_path), keep={"fraction": 1})
    assert re.search(r"a\s*2\s*3\s*1\s*24\s*21\s*87.5 %", Page(report_page(str(tmp_path))).text)


@pytest.mark.parametrize(
    "settings", [{}, {"rank_by": "recurrence"}, {"overlap": "prefer_distinct"}]
)
def test_a_threshold_of_lds_is_told_only_where_lds_parts_the_kept(tmp_path, settings):
    output = selected(tmp_path)
    la.select(output, keep={"fraction": 0.25}, **settings)
    page = Page(report_page(output))
    assert page.data["by_lds"] == (not settings)
    assert page.data["has_threshold"] == ("overlap" not in settings)
    assert ("threshold of LDS; alpha tilts it" in page.text) == (not settings)


def test_the_threshold_is_named_for_what_ranks(tmp_path):
    output = selected(tmp_path, categories=("a",))
    table = pq.read_table(f"{output}/labelled/a")
    la.select(output, keep={"count": 7}, rank_by="recurrence")
    page = Page(report_page(output))
    best = np.sort(table["recurrence"].to_numpy())[-7:]
    assert (page.data["ranked_by"], page.data["categories"][0]["threshold"]) == (
        "recurrence",
        best.min(),
    )
    ranked = page.data["categories"][0]["histograms"]["ranked"]
    assert ranked["edges"][-1] == best.max() and sum(ranked["kept"]) == 7
    assert f"recurrence, kept from {digits(best.min())}" in page.text
    assert "LDS, kept from" not in page.text and "threshold of LDS" not in page.text
    order = np.argsort(-table["recurrence"].to_numpy(), kind="stable")
    shown = re.findall(r"(a-\d{4}) ·", page.text)
    assert shown == [table["data_id"][int(order[i])].as_py() for i in (0, 6, 7, -1)]


def test_windows_without_a_value_of_what_ranks_are_left_out_of_its_histogram(tmp_path):
    output = selected(tmp_path, categories=("a", "b"))
    stars = {"a": [None if i % 3 else float(i) for i in range(60)], "b": [None] * 60}
    for url in OutputFolder(output).labelled_files():
        column = pa.array(stars[url.split("/")[-2]], pa.float64())
        write_score_table(url, "stars", {"stars": column})
    la.select(output, keep={"count": 5}, rank_by="stars")
    a, b = Page(report_page(output)).data["categories"]
    ranked = a["histograms"]["ranked"]
    assert (ranked["edges"][0], ranked["edges"][-1]) == (0, 57)
    assert (sum(ranked["kept"]), sum(ranked["dropped"])) == (5, 15)
    assert sum(b["histograms"]["ranked"]["dropped"]) == 0 and b["kept"] == 0


def test_variance_is_the_word_and_du_is_told_once(tmp_path):
    text = Page(report_page(selected(tmp_path))).text
    assert not re.search(r"\bV\b", text) and "DS against variance" in text
    assert text.count("DU is −variance") == 1


def test_records_and_windows_are_told_apart_and_sampled_out_ones_counted(tmp_path):
    output = selected(tmp_path)
    assert "sampled out" not in Page(report_page(output)).text
    read = {
        "records": 9,
        "documents": 8,
        "too_short": 3,
        "duplicates": 1,
        "sampled_out": 40,
        "quarantine": {"no_content": 1},
    }
    path = f"{output}/_longattn/summary.json"
    write_json(path, {"output": output, "categories": {"a": read, "b": {**read, "sampled_out": 0}}})
    page = Page(report_page(output))
    a, b = page.data["funnel"]
    assert [a[n] for n in ("long", "too_short", "duplicates", "bad", "sampled_out")] == [
        4,
        3,
        1,
        1,
        40,
    ]
    assert [b[n] for n in ("windows", "kept", "sampled_out")] == [60, 15, 0]
    assert "windows sampled out" in page.text
    shown = r"\na\s*".join(["", r"\s*".join(["8", "1", "3", "1", "4", "40", "60", "15", "25 %"])])
    assert re.search(shown, page.text)


def test_each_window_is_shown_with_the_command_that_inspects_it(tmp_path):
    output = selected(tmp_path / "with space", categories=("a",))
    text = Page(report_page(output)).text
    ids = re.findall(r"(a-\d{4}) ·", text)
    assert re.findall(r"longattn inspect ('.*?' \S+)", text) == [f"'{output}' {i}" for i in ids]


def test_uniform_attention_at_a_quarter():
    assert uniform_ds(32768, 8192) == pytest.approx(0.75 - 0.25 * np.log(4), abs=2e-4)
    rows = [[1 / (n + 1) if n - i >= 3 else 0 for i in range(n + 1)] for n in range(12)]
    assert uniform_ds(12, 3) == pytest.approx(sum(map(sum, rows)) / 12)


def test_the_command_writes_it_and_refuses_a_folder_of_no_run(tmp_path):
    output = selected(tmp_path / "run")
    done = CliRunner().invoke(app, ["report", output])
    assert done.exit_code == 0 and f"{output}/report.html" in done.stdout
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "none")])
    assert refused.exit_code == 2
    own_folder(f"{tmp_path}/half", score_parts(), None)
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "half")])
    assert refused.exit_code == 2 and "nothing was selected here yet" in refused.output


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (short(36_123_456_789), "36.1 B"), (short(None), "–"), (size(13_800_000_000), "13.8 GB"),
        (size(512), "512 B"), (size(2300), "2.3 kB"), (share(1, 8), "12.5 %"), (share(1, 0), "–"),
        (digits(0.40342), "0.4034"), (duration(8), "8 s"), (duration(725), "12 min"),
        (duration(12_000), "3 h 20 min"), (duration(360_000), "4 d 4 h"),
    ],
)  # fmt: skip
def test_numbers_are_told_short(shown, told):
    assert shown == told


def test_of_several_distances_the_page_tells_the_first(tmp_path):
    table = labelled_table("a", ["a-0", "a-1"], [0.3, 0.2], [1e-7] * 2)
    write_labelled(tmp_path, "a", table)
    own_folder(str(tmp_path), score_parts(min_distances=(3, 5)), None)
    la.select(str(tmp_path), keep={"fraction": 1})
    assert "reaches 3 tokens back or more" in Page(report_page(str(tmp_path))).text
