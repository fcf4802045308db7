"""The pages in a real browser: no error, no request, live sliders, harmless text, no blank picture."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

import longattn as la
from longattn.reports.evaluation import write_evaluation
from longattn.reports.evaluation_record import (
    Agreement,
    Auc,
    CategoryEvaluation,
    Evaluation,
    EvaluationSettings,
    HeadsEvaluation,
    Pair,
    Spread,
)
from longattn.reports.inspection import inspect_window, inspection_page, text_window
from longattn.reports.report import write_report
from longattn.resume.fingerprint import own_folder
from longattn.selection.heads import HeadChoice, Judgement
from tests.labelled import labelled_table, score_parts, write_labelled
from tests.reports.test_inspection import recurring
from tests.reports.test_report import HOSTILE, selected

WIDTHS = (390, 820, 1280)
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file; at the end it must have logged nothing and asked for nothing else."""
    contexts, trouble, requests = [], [], []

    def open_(path, width=1280, scheme="light"):
        viewport = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(path).as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not trouble
    assert requests and all(url.startswith(("file:", "data:", "blob:")) for url in requests)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    output = selected(tmp_path_factory.mktemp("report"), n=120, text=HOSTILE)
    return write_report(output)


def colors(png: bytes) -> int:
    """Different pixels in a PNG (8 bits, no interlace), filters undone only as far as counting needs."""
    place, data = 8, b""
    width, channels = struct.unpack(">I", png[16:20])[0], {2: 3, 6: 4}[png[25]]
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        if kind == b"IDAT":
            data += png[place + 8 : place + 8 + length]
        place += 12 + length
    raw, row = zlib.decompress(data), 1 + width * channels
    return len({raw[i : i + row] for i in range(0, len(raw), row)})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_its_window_and_no_picture_is_blank(report, opened, width, scheme):
    page = opened(report, width, scheme)
    page.wait_for_selector("#heads svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.query_selector_all("figure:visible")
    assert len(figures) >= 1 + 6 + 2 + 1 + 1
    for figure in figures:
        picture = figure.query_selector("svg")
        assert len(picture.query_selector_all("path, rect, circle, line")) > 3
        assert colors(figure.screenshot()) > 10
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, background.strip("rgb()").split(","))) > 380
    assert light == (scheme == "light")


def test_sliders_change_the_numbers_and_back(report, opened):
    page = opened(report)
    table = page.locator("#what-if-table tbody")
    before = table.inner_text()
    kept = [int(x) for x in page.locator("#what-if-table tbody td:nth-child(3)").all_inner_texts()]
    assert kept == [30, 30]
    assert page.locator("#what-if-table tbody td:nth-child(5)").all_inner_texts() == ["100 %"] * 2
    page.focus("#alpha")
    for _ in range(30):  # by keyboard: alpha 2.0
        page.keyboard.press("ArrowRight")
    assert page.locator("#alpha-value").inner_text() == "2.00"
    assert table.inner_text() != before
    page.locator("#alpha").fill("0.5")
    assert table.inner_text() == before
    page.locator("#budget").fill("0.5")
    assert page.locator("#what-if-table tbody td:nth-child(3)").all_inner_texts() == ["60", "60"]


def test_the_sliders_select_as_select_does(tmp_path, opened):
    output = selected(tmp_path, n=200)
    url = write_report(output)
    page = opened(url)
    page.locator("#alpha").fill("1.5")
    told = page.locator("#what-if-table tbody td:nth-child(6)").all_inner_texts()
    chosen = la.select(output, alpha=1.5, keep={"fraction": 0.25})
    for text, category in zip(told, ("a", "b"), strict=True):
        assert float(text.replace("\u2212", "-")) == pytest.approx(
            chosen[category].lds_threshold, rel=2e-3
        )


def test_the_command_keeps_what_the_sliders_say(report, opened):
    page = opened(report)
    told = page.locator("#what-if-command")
    assert told.inner_text().endswith("--set select.alpha=0.5 --set select.keep.fraction=0.25")
    page.locator("#alpha").fill("0.8")
    page.locator("#budget").fill("0.4")
    assert told.inner_text().endswith("--set select.alpha=0.8 --set select.keep.fraction=0.4")


@pytest.mark.parametrize("width", WIDTHS)
def test_no_two_ticks_of_an_axis_read_the_same_and_no_two_labels_overlap(tmp_path, opened, width):
    """Also of scores that differ in their fifth digit only."""
    for name, mean in (("a-category-of-a-long-long-name", 0.30001), ("b", 0.3)):
        rng = np.random.default_rng(1)
        ids = [f"{name}-{i}" for i in range(40)]
        table = labelled_table(
            name, ids, mean + rng.normal(0, 1e-6, 40), rng.normal(3e-7, 1e-11, 40)
        )
        write_labelled(tmp_path, name, table)
    own_folder(str(tmp_path), score_parts(), None)
    la.select(str(tmp_path), keep={"count": 3})
    page = opened(write_report(str(tmp_path)), width)
    axes = page.evaluate(
        """[...document.querySelectorAll("svg g[aria-label$='tick label']")].map((axis) =>
            [...axis.querySelectorAll("text")].map((text) => text.textContent))"""
    )
    assert len(axes) > 12
    for texts in axes:
        assert len(set(texts)) == len(texts)
    boxes = page.evaluate(
        """[...document.querySelectorAll("#windows svg, svg[aria-label^='Histogram']")].map((svg) =>
            [...svg.querySelectorAll("text")].map((text) => {
              const { left, right, top, bottom } = text.getBoundingClientRect();
              return [left, right, top, bottom];
            }))"""
    )
    assert len(boxes) == 1 + 6
    for figure in boxes:
        for i, a in enumerate(figure):
            for b in figure[:i]:
                apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] + 3 or b[3] <= a[2] + 3
                assert apart, (a, b)


def test_text_of_the_corpus_does_nothing(report, opened):
    page = opened(report)
    assert page.locator("pre").first.inner_text().startswith("<script>alert(1)</script>")
    assert page.locator("pre script, pre img").count() == 0
    assert page.locator("img").count() == 0


def test_it_prints_whole(report, opened):
    page = opened(report, scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 20_000


def test_an_evaluation_draws_every_scorer_on_every_foil(tmp_path, opened):
    cell, low = Auc(0.9, 0.8, 0.95), Auc(0.1, 0.0, 0.2)
    others = ("splice 4", "splice 8", "blocks 4096", "blocks 512", "unigram")
    scorers = (
        "LDS",
        "DS",
        "DU",
        "recurrence",
        "recurrence_rarity",
        "recurrence_pairs",
        "gzip ratio",
        "loss gap",
        "DS, every layer",
    )
    judged = Judgement(1, {"splice 2": (0.9, 0.8, 0.95)}, {"splice 2": (0.1, 0.0, 0.2)})
    told = CategoryEvaluation(
        documents=5,
        windows=40,
        native=dict.fromkeys(scorers, Spread(1e-17, 1.0)),
        auc={
            scorer: {"splice 2": cell, "repeat": low, **dict.fromkeys(others, cell)}
            for scorer in scorers
        },
        spearman={"LDS": {"LDS": 1.0}},
        stability={"alpha 0": Agreement(None, 0.5)},
        heads=HeadsEvaluation(
            {"splice 2": [0.5, 0.9]},
            HeadChoice(1, f"head 1 tells {HOSTILE}", (judged, judged)),
            ["head 0", "head 1"],
        ),
        pairs=[Pair(("LDS", "loss gap"), 0.9, 0.8, 0.1, True)],
    )
    settings = EvaluationSettings(
        HOSTILE, None, 8192, 2048, 0.5, "float32", None, 0, sources=[HOSTILE]
    )
    result = Evaluation(settings, 0.4, {"gap": 0.5}, {HOSTILE: told, "b": told})
    _, url = write_evaluation(str(tmp_path), result)
    for width in WIDTHS:
        page = opened(url, width)
        assert page.locator("figure circle").count() == 2 * 7 * len(scorers)
        fills = page.evaluate(
            "[...document.querySelectorAll('#auc-0 circle')].map((c) => getComputedStyle(c).fill)"
        )
        assert len(set(fills)) == len(scorers), "each in a colour of its own"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("td.above, td.below").count() == 2 * (7 * len(scorers) + 2 * 2)
        table = "document.querySelector('.scroll')"
        if width == 1280:
            assert page.evaluate(f"{table}.scrollWidth <= {table}.clientWidth"), "no column is cut"
        assert page.locator("h2").first.inner_text().startswith("<script>alert(1)</script>")


@pytest.fixture(scope="module")
def inspection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspection")
    (folder / "a.txt").write_text(recurring(f"{HOSTILE} some text of the page", words=600))
    found = inspect_window(text_window(str(folder / "a.txt"), "builtin", 4096), device="cpu")
    assert found.pairs
    (folder / "a.html").write_text(inspection_page(found))
    return folder / "a.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_an_inspection_shows_map_and_passages(inspection, opened, width, scheme):
    page = opened(inspection, width, scheme)
    page.wait_for_selector("#attention svg rect")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in page.query_selector_all("figure:visible"):
        assert colors(figure.screenshot()) > 10
    assert page.locator("pre mark").count() > 0 and page.locator("pre img, pre script").count() == 0
    before = page.locator("#attention").inner_html()
    page.locator("#head").select_option("2")
    assert page.locator("#attention").inner_html() != before
