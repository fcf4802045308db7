"""The rules of the house: which room may import from which, and how long a file may be."""

import ast
from pathlib import Path

import pytest

import longattn

ROOT = Path(longattn.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = [
    "storage", "corpus", "windows", "scoring", "resume", "selection", "formats", "reports", "pipeline",
]  # fmt: skip
BELOW = ["errors", "text", "models", "settings", "config", "samples", "builtin", "__version__"]
FORBIDDEN = {
    "corpus": ("resume", "scoring", "selection", "reports", "pipeline", "ray"),
    "windows": ("resume", "scoring", "selection", "reports", "pipeline", "ray"),
    "scoring": ("resume", "selection", "reports", "pipeline", "storage", "corpus", "ray"),
    "storage": (
        "corpus",
        "windows",
        "scoring",
        "resume",
        "selection",
        "reports",
        "pipeline",
        "ray",
    ),
    "resume": ("selection", "formats", "reports", "pipeline", "ray"),
    "selection": ("formats", "reports", "pipeline", "ray"),
    "formats": ("reports", "pipeline", "ray"),
    "reports": ("pipeline", "ray"),
}
ON_RAY = {
    "cluster.py",
    "pipeline/inputs.py",
    "pipeline/on_ray.py",
    "pipeline/steps.py",
    "pipeline/streamed.py",
    "pipeline/pools.py",
    "pipeline/tables_on_ray.py",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, *, at_top: bool = False) -> set[str]:
    """Modules that a file imports: of this package as `room.module`, of others their first name."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            base = node.module.split(".")
            names = [node.module]
            if base == ["longattn"] or (len(base) == 2 and (ROOT / base[1]).is_dir()):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {
                n.removeprefix("longattn.") if n.startswith("longattn") else base[0] for n in names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_knows_only_those_below_it(room):
    for path in (ROOT / room).rglob("*.py"):
        for module in imports(path):
            assert module.split(".")[0] not in FORBIDDEN[room], f"{name_of(path)} imports {module}"


def test_no_circle():
    """Modules, as they are imported when they load, are in an order where each needs earlier ones."""
    known = {str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path for path in FILES}
    needs = {
        name: {m for m in imports(path, at_top=True) if m in known} for name, path in known.items()
    }
    while needs:
        free = {name for name, of in needs.items() if not of & needs.keys()}
        assert free, f"a circle among {sorted(needs)}"
        needs = {name: of for name, of in needs.items() if name not in free}


def test_what_needs_no_ray_imports_none():
    found = {name_of(path) for path in FILES if "ray" in imports(path, at_top=True)}
    assert found == ON_RAY


def test_the_init_file_of_a_room_holds_a_docstring_alone():
    for room in FLOORS:
        body = ast.parse((ROOT / room / "__init__.py").read_text()).body
        assert len(body) == 1 and ast.get_docstring(ast.Module(body, [])), room


def test_files_are_short_and_names_hide_no_function():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 450, name_of(path)
    assert not {"run", "select"} & {path.stem for path in ROOT.iterdir()}
