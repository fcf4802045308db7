"""An interpreter in which importing Ray fails."""

import subprocess
import sys

import pyarrow.parquet as pq

from tests.conftest import config
from tests.test_readme import EXAMPLES

WITHOUT_RAY = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError("no module named ray: this interpreter has none")

sys.meta_path.insert(0, Refused())
config, output, example_path = sys.argv[1:]
import longattn as la
from longattn.cli import app

def command(*arguments):
    try:
        app([*arguments])
    except SystemExit as end:
        assert not end.code, (arguments, end.code)

example = {}
exec(open(example_path).read(), example)
assert example["scores"].ds.shape[0] == 1
command("plan", config, "--windows-per-second", "10", "--no-check")
command("run", config, "--executor", "local")
command("score", config, "--executor", "local")
command("select", config)
from longattn.reports import evaluation
evaluation.variants = lambda *_: {}  # nine times as long
command("evaluate", config, "--windows", "2")
command("report", output)
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import open_parquet
with open_parquet(next(iter(OutputFolder(output).labelled_files()))) as parquet:
    data_id = parquet.read(columns=["data_id"])["data_id"][0].as_py()
command("inspect", output, data_id, "--html", output + "/page.html")
command("verify", output)
command("export", config)
from longattn.reports import bench
bench.CPU_SECONDS, bench.DENSE_TOKENS["cpu"] = 0.1, 512
command("bench", "--model", "builtin", "--length", "512", "--json")
assert not [name for name in sys.modules if name.partition(".")[0] == "ray"]
"""


def test_without_ray_everything_but_a_run_on_it_works(corpus, checkpoint, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config(corpus, tmp_path / "out", checkpoint).to_yaml())
    (tmp_path / "example.py").write_text(EXAMPLES["scorer alone"])
    arguments = [str(path), str(tmp_path / "out"), str(tmp_path / "example.py")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, *arguments], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out" / "selected").num_rows > 30
