import re

import numpy as np
import pytest
from pydantic import TypeAdapter

from longattn.config import Config
from longattn.errors import ConfigError
from longattn.settings.numbers import (
    ByteSize,
    Count,
    Fraction,
    WindowLength,
    byte_size,
    count,
    read_number,
    seconds,
    token_length,
)
from longattn.settings.selection import read_every

MINIMAL = {"sources": [{"category": "book", "path": "x.jsonl"}], "output": "out"}


@pytest.mark.parametrize(
    ("read", "written", "number"),
    [
        (count, "1.5B", 1_500_000_000), (count, "100K", 100_000), (count, "100k", 100_000),
        (count, "2M", 2_000_000), (count, "36G", 36_000_000_000), (count, "1T", 10**12),
        (count, "3e9", 3_000_000_000), (count, "10,000", 10_000), (count, "1_000_000", 10**6),
        (count, " 7 ", 7), (count, 3e9, 3_000_000_000), (count, np.int64(5), 5),
        (count, "1.1B", 1_100_000_000),  # 1.1 has no exact double
        (count, "9007199254740993", 9007199254740993),  # nor has this
        (token_length, "32K", 32768), (token_length, "128K", 131072), (token_length, "128k", 131072),
        (token_length, "1M", 1048576), (token_length, "0.5M", 524288), (token_length, "32768", 32768),
        (token_length, 4096, 4096),
        (byte_size, "512M", 512 * 2**20), (byte_size, "1G", 2**30), (byte_size, "2GiB", 2**31),
        (byte_size, "500MB", 500_000_000), (byte_size, "64 MiB", 2**26), (byte_size, "100B", 100),
        (byte_size, "1.5K", 1536),
        (seconds, "60s", 60), (seconds, "10m", 600), (seconds, "90min", 5400), (seconds, "1h", 3600),
        (seconds, "2d", 172_800), (seconds, 30, 30),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(read, written, number):
    assert read(written) == number and type(read(written)) is int


@pytest.mark.parametrize("read", [count, token_length, byte_size])
@pytest.mark.parametrize(
    "written",
    ["1,5B", "10,00", "K", "", "many", "1.5", 1.5, "1e400", "-3", True, None, [3], float("nan"),
     float("inf"), "3 X", "0x10", "1__0"],
)  # fmt: skip
def test_what_is_no_whole_number_is_refused(read, written):
    with pytest.raises(ValueError, match="a whole number is required, as in"):
        read(written)


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("end", (0, 0)), ("1h", (3600, 0)), ("30m", (1800, 0)), ("90", (90, 0)),
        ("10000 windows", (0, 10_000)), ("10K windows", (0, 10_000)),
    ],
)  # fmt: skip
def test_when_to_select_anew_is_a_time_or_a_number_of_windows(text, every):
    assert read_every(Config.parse({**MINIMAL, "select": {"every": text}}).select.every) == every


@pytest.mark.parametrize("text", ["", "x", "0s", "0 windows", "windows", "-1h", "10 rows", "1.5"])
def test_another_time_to_select_is_refused_with_what_is_allowed(text):
    with pytest.raises(ConfigError, match=r"select\.every.*end, a span of time .* is required"):
        Config.parse({**MINIMAL, "select": {"every": text}})


def test_a_length_knows_no_billions_and_a_count_no_bytes():
    for read, written in ((token_length, "1B"), (count, "1MiB"), (count, "1MB")):
        with pytest.raises(ValueError, match="whole number"):
            read(written)


def test_each_setting_reads_its_own_kind():
    config = Config.parse(
        {
            **MINIMAL,
            "window": {"tokens": "32K"},
            "scorer": {"min_distance": ["8K", 4096, "2k"]},
            "select": {"keep": {"tokens": "1.5B"}},
            "workers": {"score": ["1K", "2K"], "window": "3"},
            "max_record_bytes": "1G",
            "file_bytes": "256MB",
            "max_bad_fraction": "2%",
        }
    )
    assert config.window.tokens == 32768
    assert config.min_distances == (8192, 4096, 2048)
    assert config.select.keep.tokens == 1_500_000_000
    assert (config.workers.score, config.workers.window) == ((1000, 2000), (3, 3))
    assert (config.max_record_bytes, config.file_bytes) == (2**30, 256_000_000)
    assert config.max_bad_fraction == 0.02
    shares = {"fraction": "10%"}
    assert Config.parse({**MINIMAL, "select": {"keep": shares}}).select.keep.fraction == 0.1
    assert Config.parse({**MINIMAL, "scorer": {"min_distance": "4K"}}).min_distances == (4096,)


def test_the_bounds_hold_for_text_too():
    for kind, written in ((Count, "0"), (WindowLength, "15"), (ByteSize, "0"), (Fraction, "101%")):
        with pytest.raises(ValueError, match=r"(greater|less) than or equal"):
            TypeAdapter(kind).validate_python(written)


def test_a_number_of_the_command_line_is_refused_by_its_name():
    assert read_number(Count, "--tokens", "36B") == 36_000_000_000
    with pytest.raises(ConfigError, match=r"^--read lots: a whole number is required, as in 512M"):
        read_number(ByteSize, "--read", "lots")
    with pytest.raises(ConfigError, match=r"^--length 3: 16 or more is required"):
        read_number(WindowLength, "--length", "3")


@pytest.mark.parametrize("kind", [Count, WindowLength, ByteSize])
def test_the_schema_accepts_what_is_read_and_refuses_what_is_not(kind):
    """For every text of a list, the pattern that editors get agrees with the reader."""
    adapter = TypeAdapter(kind)
    (pattern,) = (
        one["pattern"] for one in adapter.json_schema()["anyOf"] if one["type"] == "string"
    )
    read = 0
    for text in (
        "15B",
        "1.5M",
        "32K",
        "32k",
        "512M",
        "512MiB",
        "512mb",
        "1G",
        "1T",
        "10,000",
        "3e9",
        "1_000",
        "64",
        "1,5B",
        "10,00",
        "K",
        "many",
        "-3",
        "0x10",
    ):
        try:
            adapter.validate_python(text)
            accepted = True
        except ValueError:
            accepted = False
        assert bool(re.search(pattern, text)) == accepted, text
        read += accepted
    assert read > 5
