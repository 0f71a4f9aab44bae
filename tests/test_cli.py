"""The command line: what it prints where, and its exit codes."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import Config
from parablock_ray.errors import RunFailed, UserError

CONFIG = """\
name: small
out: runs/${name}
model: {name: tiny}
data: {source: reasoning_gym, tasks: [chain_sum], num_train: 80}
clients: {num: 4}
method: {name: parablock, rounds: 12}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return str(path)


class StubDriver(ModuleType):
    """Stands where `parablock_ray.driver` will be imported: keeps the config, raises what it was told to."""

    def __init__(self) -> None:
        super().__init__("parablock_ray.driver")
        self.ran: list[Config] = []
        self.raises: BaseException | None = None

    def run(self, config: Config) -> dict[str, Any]:
        self.ran.append(config)
        if self.raises:
            raise self.raises
        return {"status": "done"}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> StubDriver:
    stub = StubDriver()
    monkeypatch.setitem(sys.modules, "parablock_ray.driver", stub)
    monkeypatch.setattr("parablock_ray.driver", stub, raising=False)
    return stub


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_run_hands_the_driver_the_checked_config(config: str, driver: StubDriver) -> None:
    result = invoke("run", config, "method.rounds=3", "seed=7")
    assert result.exit_code == 0
    (ran,) = driver.ran
    assert (ran.method.rounds, ran.seed, ran.out) == (3, 7, "runs/small")
    assert result.stdout == "run folder: runs/small\n"


def test_name_and_out_are_options_and_always_text(config: str, driver: StubDriver) -> None:
    assert invoke("run", "--name", "007", config, "name=loses").exit_code == 0
    assert invoke("run", config, "--name", "grün 🙂: no", "--out", "/tmp/some/${name}").exit_code == 0
    assert [(ran.name, ran.out) for ran in driver.ran] == [
        ("007", "runs/007"),
        ("grün 🙂: no", "/tmp/some/grün 🙂: no"),
    ]


def test_the_users_mistakes_are_lines_on_stderr_and_exit_2(config: str, driver: StubDriver) -> None:
    result = invoke("run", config, "method.rounds=-3", "runtime=seral")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "runtime: must be 'ray' or 'serial' (got 'seral'); did you mean 'serial'?",
        "method.rounds: must be greater than 0 (got -3)",
    ]
    assert driver.ran == []


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (UserError("out: runs/small already holds a run"), 2, "out: runs/small already holds a run\n"),
        (RunFailed("client 1, round 3, block 0\nTraceback …"), 1, "client 1, round 3, block 0\nTraceback …\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_run_may_end(config: str, driver: StubDriver, error: BaseException, exit_code: int, said: str) -> None:
    driver.raises = error
    result = invoke("run", config)
    assert (result.exit_code, result.stderr, result.stdout) == (exit_code, said, "")


def test_our_own_bug_keeps_its_traceback(config: str, driver: StubDriver) -> None:
    driver.raises = ZeroDivisionError("a bug")
    result = invoke("run", config)
    assert result.exit_code == 1
    assert result.exception is driver.raises


def test_validate_says_what_would_run(config: str) -> None:
    result = invoke("validate", config, "network.mode=shaped", "network.up_mbps=20")
    assert result.exit_code == 0
    assert result.stdout == (
        "OK: small: parablock, 12 rounds over 4 block(s), 4 client(s), model tiny, data reasoning_gym, "
        "runtime ray, network shaped, 20/100 Mbit/s up/down -> runs/small\n"
    )


def test_validate_says_what_privacy_comes_to(config: str) -> None:
    private = ["privacy.clip=1", "privacy.noise_multiplier=20", "privacy.delta=1e-3"]
    result = invoke("validate", config, *private)
    assert result.exit_code == 0
    [line] = [line for line in result.stdout.splitlines() if line.startswith("privacy: ")]
    assert line.startswith("privacy: epsilon 0.")
    assert line.endswith("at delta 0.001 after 12 rounds, noise multiplier 20, every client in every round")
    refused = invoke("validate", config, *private, "privacy.quantile=0.5", "privacy.count_noise=2")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("privacy.count_noise: must be over half of the noise multiplier")


@pytest.mark.parametrize(
    "override", ["network.trace=none.csv", "clients.participation=none.jsonl"], ids=lambda text: text.partition("=")[0]
)
def test_validate_reads_the_files_that_it_can(config: str, override: str) -> None:
    result = invoke("validate", config, "network.mode=virtual", override)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{override.partition('=')[0]}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["run"],
        ["run", "small.yaml", "--frob"],
        ["validate", "none.yaml"],
        ["validate", "small.yaml", "--name", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert result.stdout == ""


def test_help_and_version() -> None:
    assert all(word in invoke("--help").stdout for word in ("run", "validate"))
    assert all(word in invoke("run", "--help").stdout for word in ("CONFIG", "KEY=VALUE", "--name", "--out"))
    assert invoke("--version").stdout == "parablock-ray 0.1.0\n"


def test_validate_imports_neither_torch_nor_ray(config: str) -> None:
    code = (
        "import sys\nfrom parablock_ray.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert done.code == 0, done.code\n"
        "print(sorted({'torch', 'ray', 'wandb', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, "validate", config], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistake_shows_no_traceback_from_the_shell(config: str) -> None:
    script = Path(sys.executable).with_name("parablock")
    done = subprocess.run([script, "run", config, "method.name=parablok"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("method.name: unknown method 'parablok'; did you mean 'parablock'? (allowed: ")
    assert len(done.stderr.splitlines()) == 1
