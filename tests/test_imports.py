"""Who may import whom: downwards only, and the heavy libraries each behind one door (docs/architecture.md)."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import parablock_ray
from tests.runtime.federation import QUICKSTART

PACKAGE = Path(parablock_ray.__file__).parent

RANKS = {
    "__main__": 13,
    "cli": 12,
    "sweeping": 11,
    "jobs": 10,
    "planning": 10,
    "lora_sweep": 10,
    "resume": 10,
    "driver": 9,
    "starting": 9,
    "runtime": 8,
    "recovery": 8,
    "export": 7,
    "lora_measures": 7,
    "evaluation": 7,
    "checkpointing": 7,
    "training": 6,
    "deadlines": 6,
    "participation": 5,
    "privacy": 5,
    "accounting": 4,
    "server_memory": 4,
    "reprice": 4,
    "pricing": 3,
    "reporting": 3,
    "secure_terms": 3,
    "sizes": 3,
    "named_files": 3,
    "network": 2,
    "algorithms": 2,
    "secure": 2,
    "tracking": 2,
    "checkpoint": 1,
    "lock": 1,
    "config": 1,
    "stopping": 0,
    "json_files": 0,
    "errors": 0,
    "importing": 0,
}
OPEN_TO_ALL = {"", "__version__"}  # the package itself, which imports nothing
ONLY_IN = (
    {"ray": {"runtime", "jobs"}}
    | {library: {"training"} for library in ("deepspeed", "peft", "pyarrow", "gguf")}
    | {library: {"training", "evaluation"} for library in ("transformers", "datasets", "reasoning_gym")}
    | {library: {"evaluation"} for library in ("rouge_score", "nltk", "langdetect", "lm_eval")}
    | {library: {"secure"} for library in ("cryptography", "shamirs")}
    | {"dp_accounting": {"accounting"}}
)
NOT_AT_START = {"datasets", "deepspeed", "lm_eval", "matplotlib", "nltk", "peft", "rouge_score", "scipy.stats", "wandb"}
NO_TORCH = {
    *("cli", "jobs", "sweeping", "reporting", "network", "secure", "secure_terms", "tracking", "named_files"),
    *("config", "json_files", "errors"),
    *("accounting", "importing"),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """`parablock_ray.config.load` -> `config`; the package itself -> `""`."""
    return module.split(".")[1] if "." in module else ""


def rank(room: str) -> int:
    assert room in RANKS, f"say in RANKS where {room} stands (and in docs/architecture.md)"
    return RANKS[room]


def imported_modules(file: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, those inside functions included."""
    package = (PACKAGE.name, *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*parent, *([node.module] if node.module else [])))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def mistakes(file: Path) -> Iterator[str]:
    room = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imported_modules(file):
        library = module.partition(".")[0]
        if library == PACKAGE.name:
            target = room_of(module)
            if target not in {room, *OPEN_TO_ALL} and rank(target) >= rank(room):
                yield f"{module}: {target} does not lie below {room}"
        elif library == "torch" and room in NO_TORCH:
            yield f"{module}: no torch in {room}"
        elif room not in ONLY_IN.get(library, {room}):
            yield f"{module}: only for {', '.join(ONLY_IN[library])}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    assert list(mistakes(file)) == []


def test_no_process_of_a_run_loads_what_its_config_may_not_ask_for() -> None:
    """Every one of them would take the seconds again."""
    modules = ", ".join(
        f"parablock_ray.{name}" for name in ("driver", "runtime.preload", "runtime.serial", "runtime.cluster")
    )
    ask = f"import json, sys, {modules}; print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    assert NOT_AT_START.isdisjoint(json.loads(said.splitlines()[-1]))


def test_a_driver_does_without_the_code_of_models() -> None:
    """Where it needs configs and tokenizers alone: models are for the processes that train or evaluate them."""
    ask = (
        "import json, sys, parablock_ray.runtime.cluster\n"
        "from parablock_ray.config import load_config\n"
        "from parablock_ray.driver import prepare\n"
        f"prepare(load_config({str(QUICKSTART)!r}, []))\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    assert "transformers.modeling_utils" not in json.loads(said.splitlines()[-1])


def test_every_room_has_its_rank() -> None:
    for file in FILES:
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        assert room == "__init__" or rank(room) >= 0


@pytest.mark.parametrize(
    ("file", "line", "allowed"),
    [
        ("network/links.py", "import torch", False),
        ("network/links.py", "from parablock_ray.tracking.events import Span", False),
        ("network/links.py", "from parablock_ray import errors", True),
        ("network/links.py", "from .timeline import Link", True),
        ("network/links.py", "from ..runtime import base", False),
        ("network/links.py", "def f():\n    from parablock_ray import driver", False),
        ("algorithms/blocks.py", "import torch.nn", True),
        ("algorithms/blocks.py", "from transformers import AutoModel", False),
        ("training/engine.py", "import deepspeed", True),
        ("training/engine.py", "import ray", False),
        ("evaluation/generate.py", "import transformers", True),
        ("evaluation/harness.py", "from lm_eval import simple_evaluate", True),
        ("evaluation/tasks.py", "from parablock_ray.training.tokens import tokenize", True),
        ("evaluation/tasks.py", "from parablock_ray.driver import prepare", False),
        ("training/master.py", "from parablock_ray.evaluation.tasks import evaluate", False),
        ("training/evaluate.py", "import rouge_score", False),
        ("runtime/cluster.py", "import ray", True),
        ("jobs/follow.py", "from ray.job_submission import JobStatus", True),
        ("jobs/follow.py", "from parablock_ray.runtime.cluster import connect", True),
        ("jobs/follow.py", "import torch", False),
        ("runtime/cluster.py", "from parablock_ray.tracking.events import Span", True),
        ("config/load.py", "from parablock_ray.tracking.events import Span", False),
        ("driver.py", "from parablock_ray.cli import main", False),
        ("secure/primitives.py", "import cryptography", True),
        ("secure/client.py", "import torch", False),
        ("secure/server.py", "from parablock_ray.algorithms.base import RoundPlan", False),
        ("runtime/server.py", "from parablock_ray.secure.server import SecureServer", True),
        ("runtime/server.py", "import shamirs", False),
        ("cli.py", "from parablock_ray import __version__", True),
    ],
)
def test_the_rule_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, line: str, allowed: bool) -> None:
    package = tmp_path / "parablock_ray"
    (package / file).parent.mkdir(parents=True, exist_ok=True)
    (package / file).write_text(line)
    monkeypatch.setattr(f"{__name__}.PACKAGE", package)
    assert (list(mistakes(package / file)) == []) is allowed
