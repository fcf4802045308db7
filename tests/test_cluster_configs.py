"""The files of configs/cluster/: each against the validator of who reads it, and what they promise."""

import json
import re
import subprocess
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from longattn.config import Config
from longattn.pipeline.monitor import LAG_METRICS, METRICS
from longattn.pipeline.stopping import LAST

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "cluster"


@pytest.fixture
def job():
    return yaml.safe_load((FOLDER / "kuberay-rayjob.yaml").read_text())


def pods(job):
    """Of the head and of each group of workers."""
    spec = job["spec"]["rayClusterSpec"]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    return [group["template"]["spec"] for group in groups]


def test_the_rayjob_meets_the_schema_of_its_resource(job):
    schema = json.loads((Path(__file__).parent / "kuberay_rayjob_v1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(job)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft202012Validator(schema).validate(job)


def test_the_rayjob_grows_from_none_and_holds_no_secret(job):
    spec = job["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] and job["spec"]["shutdownAfterJobFinishes"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert all(g["minReplicas"] == 0 < g["maxReplicas"] for g in groups.values())
    gpus = {
        name: g["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for name, g in groups.items()
    }
    assert gpus == {"cpu": None, "gpu": "1"}
    for group in (spec["headGroupSpec"], *groups.values()):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"mountPath": "/dev/shm", "name": "shm"} in container["volumeMounts"]
        (shm,) = pod["volumes"]
        limit = container["resources"]["limits"]["memory"]
        share = int(shm["emptyDir"]["sizeLimit"][:-2]) / int(limit[:-2])
        assert shm["emptyDir"]["medium"] == "Memory" and 0.2 < share < 0.35
        assert container["envFrom"] == [{"secretRef": {"name": "longattn-s3"}}]
        assert not any("KEY" in e["name"] for e in container.get("env", []))
    assert all(g["template"]["spec"]["tolerations"] for g in groups.values())


def test_the_rayjob_is_what_the_operator_runs_again_and_takes_away(job):
    """Rules of KubeRay's validation and controller beyond the types of its resource."""
    spec = job["spec"]
    assert spec["backoffLimit"] > 0 and spec["submissionMode"] == "K8sJobMode"  # others: no retries
    assert "clusterSelector" not in spec  # a new cluster each time, and gone with the job
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] >= 0
    assert spec["rayClusterSpec"]["rayVersion"] in (FOLDER / "Dockerfile").read_text()
    assert yaml.safe_load(spec.get("runtimeEnvYAML", "{}")) == {}  # all is in the image
    assert "version" not in spec["rayClusterSpec"]["autoscalerOptions"]  # not beside the variable
    assert set(pod["restartPolicy"] for pod in pods(job)) == {"Never"}  # of autoscaler v2
    for pod in pods(job):
        assert pod["containers"][0]["name"].startswith("ray-")  # Ray's is the first


def test_a_deleted_rayjob_leaves_the_driver_the_time_that_it_takes(job):
    """The operator stops the job and deletes all pods at once: they stay until the driver is gone."""
    head, *workers = pods(job)
    (seconds,) = [
        int(variable["value"])
        for variable in head["containers"][0]["env"]
        if variable["name"] == "RAY_JOB_STOP_WAIT_TIME_S"
    ]
    assert seconds > LAST
    for pod in (head, *workers):
        command, stays = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep" and seconds < int(stays) < pod["terminationGracePeriodSeconds"]


def test_ray_up_takes_the_cluster_file(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = prepare_config(yaml.safe_load((FOLDER / "ray-up.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert all(types[name]["min_workers"] == 0 for name in ("cpu", "gpu"))
    assert "GPU" not in types["cpu"]["resources"] and types["gpu"]["resources"]["GPU"] == 1


def test_the_slurm_script_is_bash_and_wants_a_config():
    script = str(FOLDER / "slurm.sh")
    subprocess.run(["bash", "-n", script], check=True)
    refused = subprocess.run(["bash", script], capture_output=True, text=True)
    assert refused.returncode and "a config is wanted" in refused.stderr


def test_every_command_in_these_files_names_a_setting_that_exists():
    text = "".join(file.read_text() for file in FOLDER.iterdir())
    values = {"sources": [{"category": "a", "path": "b"}], "output": "c"}
    fields = set(re.findall(r"(workers\.[a-z_]+)", text))
    assert fields >= {"workers.gpus_per_scorer", "workers.wait_seconds"}
    for field in fields:
        Config.parse({**values, "workers": {field.partition(".")[2]: 1}})


def test_the_dashboard_reads_only_metrics_that_are_exported_and_reads_them_all():
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels) > 8
    told = [target["expr"] for panel in panels for target in panel["targets"]]
    told += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    read = set(re.findall(r"ray_\w+", " ".join(told)))
    assert read == {f"ray_{name}" for name, _ in [*METRICS.values(), *LAG_METRICS.values()]}
    for expression in told:
        assert expression.count("(") == expression.count(")")


def test_the_dashboard_is_one_of_grafanas_own_schema():
    plugins.register_default_plugins()
    given = json.loads((FOLDER / "grafana.json").read_text())
    loaded = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))

    def check(value, read, where):
        """What Grafana's model does not know is lost on the way through it."""
        if isinstance(value, dict):
            for key, inner in value.items():
                assert key in read, f"{where}.{key}"
                check(inner, read[key], f"{where}.{key}")
        elif isinstance(value, list):
            assert len(value) == len(read), where
            for number, (inner, other) in enumerate(zip(value, read, strict=True)):
                check(inner, other, f"{where}[{number}]")
        else:
            assert value == read, where

    check(given, loaded, "")


def test_the_page_lists_every_metric():
    text = (FOLDER / "README.md").read_text()
    for name, _ in [*METRICS.values(), *LAG_METRICS.values()]:
        assert f"`ray_{name}`" in text


def test_the_working_directory_of_a_job_is_small(tmp_path):
    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        top = {name.partition("/")[0] for name in package.namelist()}
        assert {"longattn", "ray_jobs", "configs"} <= top and not top & {"tests", ".git", ".venv"}
    assert (tmp_path / "package.zip").stat().st_size < 12e6
