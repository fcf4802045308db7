import pyarrow as pa

from longattn import scores
from longattn.partitions import placed
from longattn.scores import by_category, estimated_rows, gather
from longattn.storage.files import list_files
from tests.labelled import labelled_table, write_labelled


def rows(table):
    return [
        (category, row["data_id"], row["file"], row["row"])
        for category, part in by_category(table)
        for row in part.to_pylist()
    ]


def test_windows_of_a_document_meet_and_the_first_of_equal_ids_stays(tmp_path, monkeypatch):
    ids = [f"{category}-{i // 3:04d}-{i % 3}" for category in "ab" for i in range(300)]
    for start in (0, 200, 400, 500):  # the last is all there before
        own = ids[start : start + 200] if start < 500 else ids[100:350]
        table = labelled_table("a", own, [0.5] * len(own), [1e-7] * len(own))
        document = pa.array([i.rpartition("-")[0] for i in own])
        category = pa.array([i[0] for i in own]).cast(table.schema.field("category").type)
        for name, column in (("document_id", document), ("category", category)):
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(name), column)
        write_labelled(tmp_path / str(start), "a", table)
    sizes = list_files(str(tmp_path), ".parquet")  # in order of `start`
    assert estimated_rows(sizes) == 850
    monkeypatch.setattr(scores, "PARTITION", 100)
    with placed("local", 850) as place:
        found = gather(place, str(tmp_path), sizes, 850, ["recurrence"])
        tables = list(place.each((pa.Table.combine_chunks, handle) for handle in found.handles))
    assert len(tables) == 9 and all(len(table) for table in tables)
    documents = [{i.rpartition("-")[0] for _, i, _, _ in rows(table)} for table in tables]
    assert sum(map(len, documents)) == len(set().union(*documents)) == 200
    flat = [row for table in tables for row in rows(table)]
    order = list(sizes)
    want = {}
    for number, url in enumerate(order):
        start = int(url.split("/labelled")[0].rpartition("/")[2])
        own = ids[start : start + 200] if start < 500 else ids[100:350]
        for place_in_file, name in enumerate(own):
            want.setdefault((name[0], name), (number, place_in_file))
    assert {(c, i): (f, r) for c, i, f, r in flat} == want and len(flat) == 600
    told = {c: (of.windows, of.duplicate_rows) for c, of in found.categories.items()}
    assert told == {"a": (300, 200), "b": (300, 50)}
    for table in tables:
        for _, part in by_category(table):
            positions = [(row["file"], row["row"]) for row in part.to_pylist()]
            assert positions == sorted(positions)


def test_many_files_are_estimated_from_some(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "SAMPLED", 4)
    for i in range(15):
        table = labelled_table("a", [f"x{i}-{j}" for j in range(4)], [0.5] * 4, [1e-7] * 4)
        write_labelled(tmp_path, "a", table)
    sizes = list_files(str(tmp_path), ".parquet")
    assert abs(estimated_rows(sizes) / (4 * len(sizes)) - 1) < 0.02
