"""The README and the pages of the rooms: their maps are true; their examples on Ray run in
tests/integration/test_examples.py."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import yaml

import longattn as la
from longattn.cli import app
from longattn.storage.tables import SELECTED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "longattn/pipeline/README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: ([^>]+) -->\n```python\n(.*?)```", PAGES, re.DOTALL))


def test_all_examples_are_tested():
    assert set(EXAMPLES) == {
        "own dataset and filter",
        "own rule",
        "scorer alone",
        "scores only",
        "hugging face",
        "iceberg",
        "further scores",
    }
    assert sum(bool(line.strip()) for line in EXAMPLES["scorer alone"].splitlines()) <= 4


def test_the_row_of_a_selected_file_has_the_columns_that_there_are(finished):
    (block,) = re.findall(r"A row of `selected/.*?```text\n(.*?)```", README, re.DOTALL)
    cells = [cell for line in block.splitlines() for cell in re.split(r"  +", line.strip())]
    assert sorted(cells[::2]) == sorted(SELECTED.names)
    assert pq.read_table(f"{finished[0].output}/selected").column_names == SELECTED.names


def test_the_source_map_names_every_room_and_file_that_there_is():
    rows = README.partition("room of `longattn/`")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+(?:\.py|/))`", rows))
    package = ROOT / "longattn"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named == files | rooms
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", README):
        assert (package / path).exists() or (ROOT / path).exists(), path


def test_the_config_of_the_readme_is_one():
    values = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1])
    made = la.Config.parse(values)
    assert made.window.tokens == 32768 and made.scores[0].columns == (
        "compression_ratio",
        "repetition",
    )


def test_the_readme_names_every_command_and_is_short():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"`longattn ([a-z]+)", README))
    assert named == commands and len(README.splitlines()) <= 190


def test_links_of_the_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("[lct]*/**/*.md")]
    for page in pages:
        for target in re.findall(
            r"\]\(([^)#:\s]+)(?:#[^)]*)?\)|srcset=\"([^\"]+)\"", page.read_text()
        ):
            place = page.parent / (target[0] or target[1])
            assert place.exists(), f"{page.relative_to(ROOT)} links to {place}"


def test_the_table_of_the_readme_is_the_one_that_a_run_prints():
    shown = re.search(r"```text\n(category .*?)```", README, re.DOTALL)[1].splitlines()
    columns = re.search(
        r'"read": "documents".*?threshold', (ROOT / "longattn/terminal.py").read_text(), re.DOTALL
    )[0]
    for name in shown[0].replace("LDS from", "").split()[1:]:
        assert f'"{name}":' in columns
    assert all(len(line) <= 80 for line in shown)
