"""YAML and `--set field=value` to plain values; what would silently lose a setting is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from longattn.errors import ConfigError
from longattn.text import without_secrets

MAX_VALUES = 100_000  # of a config once its aliases are written out: ten lines of them can be 10^9


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that stands twice in a mapping is an error."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases stand for more than {MAX_VALUES} values", node.start_mark
            )
        return self.construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"{min(twice)} stands twice in one mapping", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, those of an alias each time; one within itself: too many."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # while it is counted
        below: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            below = chain.from_iterable(node.value)
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(_values(one, known) for one in below)
    return known[id(node)]


def read_yaml(text: str) -> Any:
    """The value of a YAML text, as `yaml.safe_load`.

    Raises yaml.YAMLError, also for a doubled key, and for more than MAX_VALUES values.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
    except (ValueError, OverflowError) as error:  # a date or a number that there is not
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Change `values` by each `a.b=value`, in order.

    Raises ConfigError, a line each, for those that are not understood, and for two of which the later
    would undo the earlier: `--set select.keep.tokens=1B --set select.keep.count=3`.
    """
    seen: list[tuple[tuple[str, ...], str]] = []
    faults: list[str] = []
    for override in overrides:
        try:
            target = tuple(_apply(values, override))
        except ConfigError as error:
            faults += error.lines
            continue
        for earlier, text in seen:
            if earlier[: len(target)] == target:
                faults.append(
                    f"--set {text} and --set {override}: the second undoes the first; give one"
                )
        seen.append((target, override))
    if faults:
        raise ConfigError(*faults)


def _apply(values: dict[str, Any], override: str) -> list[str]:
    """Change one field; returns its path."""
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: field=value is wanted, as in select.alpha=1")
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not YAML") from None
    if parts[0] == "select" and parts[-2:-1] == ["keep"]:  # one of three: the new one replaces
        parts, value = parts[:-1], {parts[-1]: value}
    node: Any = values
    for i, part in enumerate(parts):
        where = ".".join(parts[: i + 1])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"--set {override}: {where}: an index from 0 to {len(node) - 1} is wanted"
                )
            key: Any = int(part)
        elif isinstance(node, dict):
            key = part
        else:
            raise ConfigError(f"--set {override}: {where}: the value above it has no fields")
        if i == len(parts) - 1:
            node[key] = value
            break
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    return parts


def read_mapping(path: str | Path, wanted: str, what: str = "a config") -> dict[str, Any]:
    """The mapping in a YAML file, local or of any fsspec URL. Raises ConfigError naming the file.

    Args:
        path: of the file.
        wanted: what the mapping has, for people.
        what: the file is, for people.
    """
    from longattn.storage.files import filesystem, storage_errors

    fs, inside = filesystem(str(path))
    shown = without_secrets(str(path))
    try:
        with storage_errors(str(path)):
            data = fs.cat_file(inside)
        values = read_yaml(data.decode())
    except FileNotFoundError:
        raise ConfigError(f"{shown}: there is no such file to be read as {what}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: cannot be read as {what}: not UTF-8: {error.reason}") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"{shown}: cannot be read as {what}: {why}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{shown}: {wanted} is required")
    return values
