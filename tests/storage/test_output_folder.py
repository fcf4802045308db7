"""An output that takes no file is refused at once, in one line, and a look at it leaves nothing."""

import fsspec
import pytest

from longattn.errors import ConfigError
from longattn.storage.output_folder import require_folder, require_writable


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("/proc/x", "/proc cannot be written to"),
        ("/sys/kernel/x/y", "/sys/kernel cannot be written to"),
        ("/dev/null/x", "/dev/null is a file"),
        ("{tmp}/file/x/y", "file is a file"),
        ("{tmp}/link/x", "link is a link to nothing"),
    ],
)
def test_a_place_that_takes_no_folder_is_refused(tmp_path, output, told):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    output = output.format(tmp=tmp_path)
    with pytest.raises(ConfigError) as refused:
        require_folder(output)
    line = str(refused.value)
    assert line.startswith(f"output {output}: ") and told in line and "; allowed: a folder" in line


def test_a_look_at_a_place_leaves_nothing(tmp_path):
    for output in (tmp_path, tmp_path / "a/b"):
        require_writable(str(output))
    assert not list(tmp_path.iterdir())
    require_writable("memory://bucket/out")
    assert not fsspec.filesystem("memory").find("/bucket")


def test_a_bucket_that_refuses_is_told_and_one_that_there_is_not(s3, monkeypatch):
    with pytest.raises(ConfigError, match="output s3://nowhere/out cannot be written to "):
        require_writable("s3://nowhere/out")
    require_writable("s3://bucket/written-to")
    fs = fsspec.filesystem("memory")

    def refused(*_):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(fs), "pipe_file", refused)
    with pytest.raises(
        ConfigError, match=r"output memory://b/o cannot be written to \(Access Denied"
    ):
        require_writable("memory://b/o")
