"""MDS shards, read by the documented layout; tests/integration/test_trainers.py reads by mosaicml-streaming."""

from tests.formats.made import drawn, exported, names_of, read_mds, write_selected


def test_a_category_is_a_stream_with_domain_length_and_data_id(tmp_path):
    rows = {"book": drawn(5, 300, 100_000), "code": [[7], *drawn(3, 8, 100_000)]}
    for category, of in rows.items():
        write_selected(tmp_path, category, of)
    folders = exported(tmp_path, "mds", 100_000, part_bytes=2 * 300 * 4)
    assert folders == [f"{tmp_path}/mds/book", f"{tmp_path}/mds/code"]
    assert names_of(tmp_path / "mds/book") == [
        "index.json",
        *(f"shard.0000{i}.mds" for i in range(3)),
    ]
    for folder, (category, of) in zip(folders, rows.items(), strict=True):
        samples = read_mds(folder)
        assert [sample["input_ids"] for sample in samples] == of
        assert [sample["data_id"] for sample in samples] == [
            f"{category}-{i:03d}" for i in range(len(of))
        ]
        assert [sample["length"] for sample in samples] == list(map(len, of))
        assert [sample["indices"] for sample in samples] == [[[0, len(row)]] for row in of]
        assert {sample["domain"] for sample in samples} == {category}


def test_shuffled_all_is_one_stream(tmp_path):
    for category in "ab":
        write_selected(tmp_path, category, drawn(4, 8, 100))
    assert exported(tmp_path, "mds", shuffle=0) == [f"{tmp_path}/mds"]
    samples = read_mds(tmp_path / "mds")
    assert sorted(sample["data_id"] for sample in samples) == [
        f"{c}-00{i}" for c in "ab" for i in range(4)
    ]
