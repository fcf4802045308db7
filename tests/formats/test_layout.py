"""The order of an export: by category and file, or by a hash of seed and data_id over all of them."""

import numpy as np
import pytest
import xxhash

from tests.formats.made import drawn, exported, read_bytes, sequences, write_selected


def fill(folder, files):
    """The same 60 windows of two categories, in so many files a category."""
    for category, seed in (("book", 1), ("code", 2)):
        rows = drawn(30, 8, 100, seed)
        names = [f"{category}-{i:03d}" for i in range(30)]
        for file, chosen in enumerate(
            np.array_split(np.random.default_rng(files).permutation(30), files)
        ):
            write_selected(
                folder, category, [rows[i] for i in chosen], [names[i] for i in chosen], f"{file}"
            )


def test_without_a_seed_the_order_is_that_of_category_and_file(tmp_path):
    for category in ("b", "a"):
        for file in ("2", "1"):
            names = [f"{category}-{file}-{i}" for i in range(3)]
            write_selected(tmp_path, category, drawn(3, 8, 100), names, file)
    exported(tmp_path, "jsonl", part_bytes=2 * 8 * 4)
    got = [name for name, _, _ in sequences(tmp_path, "jsonl")]
    assert got == [f"{c}-{file}-{i}" for c in "ab" for file in "12" for i in range(3)]
    parts = sorted(path.name for path in (tmp_path / "jsonl").glob("*.zst"))
    assert parts == [f"{c}-{i:05d}.jsonl.zst" for c in "ab" for i in range(3)]


@pytest.mark.parametrize("format", ["mds", "npy", "jsonl"])
def test_a_seed_gives_one_order_over_all_categories_whatever_the_files(tmp_path, format):
    found = []
    for files in (1, 7):
        fill(tmp_path / str(files), files)
        exported(tmp_path / str(files), format, shuffle=5, part_bytes=400)
        found.append(sequences(tmp_path / str(files), format))
    assert found[0] == found[1]
    names = [name for name, _, _ in found[0]]
    truth = [f"{c}-{i:03d}" for c in ("book", "code") for i in range(30)]
    assert names == sorted(truth, key=lambda name: xxhash.xxh3_64_intdigest(f"5:{name}".encode()))
    of = {
        name: row
        for c, seed in (("book", 1), ("code", 2))
        for name, row in zip(
            [f"{c}-{i:03d}" for i in range(30)], drawn(30, 8, 100, seed), strict=True
        )
    }
    assert all(ids == of[name] and name.startswith(category) for name, category, ids in found[0])


def test_the_files_of_a_seed_are_the_same_bytes_whatever_the_layout(tmp_path):
    data = []
    for files in (2, 5):
        fill(tmp_path / str(files), files)
        prefixes = exported(tmp_path / str(files), "megatron", shuffle=1, part_bytes=200)
        assert len(prefixes) == 5
        data.append([read_bytes(p + end) for p in prefixes for end in (".bin", ".idx")])
    assert data[0] == data[1]
    other = exported(tmp_path / "2", "megatron", shuffle=2, part_bytes=200)
    assert [read_bytes(p + ".bin") for p in other] != data[0][::2]


def test_parts_are_of_about_one_size(tmp_path):
    write_selected(tmp_path, "a", drawn(50, 8, 100))
    paths = exported(tmp_path, "npy", part_bytes=100)  # 6.25 windows of 16 bytes
    sizes = [len(read_bytes(path)) for path in paths]
    assert sum(sizes) == 50 * 16 and set(sizes[:-1]) <= {96, 112}
