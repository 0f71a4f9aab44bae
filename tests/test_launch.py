"""The launchers' form; that they run is in tests/jobs/test_on_cluster.py and in launch/README.md."""

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_clean(script: Path) -> None:
    checker = shutil.which("shellcheck")
    command = [checker, str(script)] if checker else ["bash", "-n", str(script)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert script.stat().st_mode & 0o111 or script.suffix == ".sbatch"


def test_the_file_for_ray_up_is_what_ray_takes() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text("utf-8"))
    jsonschema.validate(yaml.safe_load((LAUNCH / "ray-up-aws.yaml").read_text("utf-8")), schema)


def test_the_ray_job_starts_a_run_on_a_cluster_with_a_token() -> None:
    [manifest] = yaml.safe_load_all((LAUNCH / "kuberay-rayjob.yaml").read_text("utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    assert spec["entrypoint"].startswith("parablock run ")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", ["kuberay-rayjob.yaml", "ray-up-aws.yaml"])
def test_what_was_not_run_says_so(name: str) -> None:
    assert (LAUNCH / name).read_text("utf-8").startswith("# NOT RUN:")
