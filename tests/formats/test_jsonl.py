"""JSON Lines, read back by Hugging Face `datasets`."""

import datasets

from tests.formats.made import drawn, exported, read_jsonl, write_selected


def test_a_line_a_window_that_datasets_reads(tmp_path):
    rows = {"a": drawn(5, 8, 100_000), "b": drawn(2, 3, 100_000)}
    for category, of in rows.items():
        write_selected(tmp_path, category, of)
    paths = exported(tmp_path, "jsonl", 100_000, part_bytes=3 * 8 * 4)
    assert [path.rpartition("/")[2] for path in paths] == [
        "a-00000.jsonl.zst",
        "a-00001.jsonl.zst",
        "b-00000.jsonl.zst",
    ]
    read = datasets.load_dataset(
        "json", data_files=paths, split="train", cache_dir=str(tmp_path / "c")
    )
    assert [row["input_ids"] for row in read] == [*rows["a"], *rows["b"]]
    assert read["category"] == ["a"] * 5 + ["b"] * 2 and read["length"] == [8] * 5 + [3] * 2
    assert read["documents"] == [[[0, 8]]] * 5 + [[[0, 3]]] * 2
    assert list(read_jsonl(paths[2])[1]) == [
        "data_id",
        "category",
        "length",
        "documents",
        "input_ids",
    ]
