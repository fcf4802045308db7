"""JSON records: what is written is read, and nothing else."""

import json

import pytest

from longattn.storage.files import read_json, write_bytes
from longattn.storage.records import read_record, write_record


def test_a_record_is_read_as_it_was_written_and_people_can_read_it_too(tmp_path):
    url, value = f"{tmp_path}/a/b.json", {"b": [1, 0.1, None], "a": {"é": "日"}}
    assert read_record(url) is None
    write_record(url, value)
    assert read_record(url) == value
    text = (tmp_path / "a" / "b.json").read_text()
    assert text.startswith('{\n "b": [\n  1,\n') and '"é": "日"' in text and text.endswith("}\n")
    assert read_json(url).keys() == {"a", "b", "checksum"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON: "),
        (b"{", "not JSON: "),
        (b"\xff", "not JSON: "),
        (b"[1]", "damaged: a JSON object is required"),
        (b"7", "damaged: a JSON object is required"),
        (b"[" * 100_000, "damaged: nested too deep"),
        (b'{"a": 1, "checksum": "0"}', "damaged: it is not what its checksum was taken of"),
    ],
)
def test_what_is_broken_is_named(tmp_path, data, why):
    url = f"{tmp_path}/x.json"
    write_bytes(url, data)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        read_record(url)
    assert str(refused.value).startswith(f"{url}: {why}")


def test_any_value_that_changes_is_noticed(tmp_path):
    url = f"{tmp_path}/x.json"
    write_record(url, {"rows": 1, "of": ["a"]})
    stored = read_json(url)
    for changed in ({**stored, "rows": 2}, {**stored, "more": 0}, {**stored, "of": ["b"]}):
        write_bytes(url, json.dumps(changed).encode())
        with pytest.raises(ValueError, match="not what its checksum was taken of"):
            read_record(url)
    write_bytes(url, b'{"rows": 1}')  # of an earlier version, which sealed nothing
    assert read_record(url) == {"rows": 1}
