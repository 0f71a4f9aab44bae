"""The launchers' form; that they run is in tests/jobs/test_on_cluster.py and in launch/README.md."""

import json
import runpy
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
def test_bash_can_read_the_scripts(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert script.stat().st_mode & 0o111 or script.suffix == ".sbatch"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here: apt-get install shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    checked = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


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


EXPOSED = """\
# TYPE ray_parablock_loss gauge
ray_parablock_loss{WorkerId="01",run="a",method="parablock"} 2.5
ray_node_cpu_count{ip="127.0.0.1"} 2.0
ray_parablock_upload_bytes_total{run="a"} 1.2e+06
"""


def answers(state_of_server: str) -> dict[str, str]:
    """URL → what a cluster with one run says there."""
    actors = [
        {"name": "worker-0", "class_name": "ClientActor", "state": "ALIVE"},
        {"name": "server", "class_name": "ServerActor", "state": state_of_server},
        {"name": "_ray_internal_job_actor_1", "class_name": "JobSupervisor", "state": "ALIVE"},
    ]
    return {
        "http://head:8265/api/v0/actors": json.dumps({"data": {"result": {"result": actors}}}),
        "http://head:8265/api/prometheus/sd": json.dumps([{"labels": {}, "targets": ["head:1", "node:2"]}]),
        "http://head:1/metrics": EXPOSED,
        "http://node:2/metrics": "",
    }


@pytest.mark.parametrize(
    ("state_of_server", "code", "told"),
    [
        ("ALIVE", 0, "actors: server, worker-0\nray_parablock_loss 2.5\nray_parablock_upload_bytes_total 1.2e+06\n"),
        ("DEAD", 1, "no run of http://head:8265 told its loss within 0.1 s; actors: ['worker-0'], figures: {'ray_"),
    ],
)
def test_figures_are_read_from_the_ports_that_the_dashboard_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state_of_server: str, code: int, told: str
) -> None:
    main = runpy.run_path(str(LAUNCH / "monitoring" / "figures.py"))["main"]
    said = answers(state_of_server)
    main.__globals__.update(ask=lambda url, token=None: said[url], POLL_S=0.0)
    (tmp_path / "token").write_text("secret\n")
    assert main("http://head:8265", str(tmp_path / "token"), "0.1") == code
    assert told in "".join(capsys.readouterr())
