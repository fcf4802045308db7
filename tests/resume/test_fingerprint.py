"""What `run.json` says of a folder, whichever version wrote it."""

import pytest

from longattn.errors import FolderError
from longattn.resume.fingerprint import RunRecord, read_run_record
from longattn.resume.user_columns import known_types
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import write_record
from tests.labelled import score_parts


def test_settings_of_another_version_are_not_known_and_the_parts_of_its_scores_are(tmp_path):
    folder, parts = OutputFolder(str(tmp_path)), score_parts()
    assert read_run_record(folder.url) is None
    for settings in ("sources: []\nno_such_setting: 3\n", None):
        write_record(folder.record("run"), RunRecord(parts, None).to_dict() | {"config": settings})
        record = read_run_record(folder.url)
        assert (record.parts, record.config, record.model) == (parts, None, "builtin")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 1}, "has the layout 1 of another version"),
        ({"parts": {}}, r"run\.json: damaged: "),
        ({"parts": 3}, r"run\.json: damaged: "),
        ({"config": "[unclosed"}, r"run\.json: damaged: ParserError: "),
    ],
)
def test_what_is_no_record_of_ours_is_refused_in_a_line(tmp_path, change, told):
    folder = OutputFolder(str(tmp_path))
    write_record(folder.record("run"), RunRecord(score_parts(), None).to_dict() | change)
    with pytest.raises(FolderError, match=told) as error:
        read_run_record(folder.url)
    assert "\n" not in str(error.value)


def test_types_of_columns_are_types(tmp_path):
    folder = OutputFolder(str(tmp_path))
    assert known_types(folder) == {}
    write_record(folder.record("columns"), {"n": "int64"})
    assert known_types(folder) == {"n": "int64"}
    for kind in ("no type", 3, None):
        write_record(folder.record("columns"), {"n": kind})
        with pytest.raises(FolderError, match=r"columns\.json: damaged: .* is no type of 'n'$"):
            known_types(folder)
