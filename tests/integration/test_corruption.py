"""Every kind of corruption in every file of a run is a finding of `verify`."""

import shutil

from tests.corruptions import corruptions, missed_of
from tests.reports.test_corruption import small_output, unnoticed_flips


def test_each_planted_corruption_and_flipped_bit_is_a_finding_of_a_line(tmp_path, checkpoint):
    whole = small_output(tmp_path, checkpoint)
    shutil.copytree(whole, tmp_path / "broken")
    kinds = list(corruptions(whole))
    assert len(kinds) >= 500
    assert missed_of(kinds, whole, tmp_path / "broken", findings=1) == []
    assert unnoticed_flips(whole, tmp_path / "broken", 300) == []
