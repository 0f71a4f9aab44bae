"""Malformed inputs by the thousand: config loading, JSON Lines readers, checkpoint loading, update validation.

Only clear errors may come out: no other exception, no hang, no memory blow-up (tests/watched.py). The slow test takes
11,000 inputs; the messages of secure aggregation have 10,000 of their own (tests/secure/test_messages.py).
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from parablock_ray import checkpoint
from parablock_ray.algorithms.base import RoundPlan, Sent, Visit
from parablock_ray.algorithms.gate import Gate, Passed, Refused
from parablock_ray.algorithms.wire import Wire
from parablock_ray.checkpoint import Damaged
from parablock_ray.config import load_config, save_resolved
from parablock_ray.config.data import DataConfig
from parablock_ray.config.server import ServerConfig
from parablock_ray.errors import UserError
from parablock_ray.evaluation.files import ChoiceRow, ConversationRow, GSM8KRow, InstructionRow, read_rows
from parablock_ray.evaluation.instructions import Instruction
from parablock_ray.json_files import from_json, json_file, lines
from parablock_ray.network.link_trace import read_link_trace
from parablock_ray.tracking.evaluations import checked_results, checked_row
from parablock_ray.tracking.events import Committed, Dropped, Span, as_row, read_events
from parablock_ray.tracking.rounds import checked_round
from parablock_ray.tracking.sweep_folder import sweep_runs
from parablock_ray.training.checkpoints import restored
from parablock_ray.training.sources import read_examples
from tests.test_configs import FILES
from tests.watched import altered, num_refused, value

# ---- configs

YAML_TOKENS = [
    *(
        b"${",
        b"}",
        b"${name}",
        b"${oc.env:HOME}",
        b"${.name}",
        b"\\${",
        b"&a ",
        b"*a",
        b"<<: *a\n",
        b"!!int x",
        b"!!set",
    ),
    *(
        b"!!python/object:os.system x",
        b"[",
        b"{",
        b"]",
        b"? ",
        b"- ",
        b": ",
        b"\t",
        b"|\n",
        b">-\n",
        b"---\n",
        b"...\n",
    ),
    *(b"'", b'"', b'"\\0"', b'"\\ud800"', b"\x00", b"\xff", b"\xef\xbb\xbf", b"%YAML 9.9\n", b"9" * 5_000, b"1e999"),
    *(
        b".nan",
        b".inf",
        b"2001-99-99",
        b"0o99",
        b"1:2:3",
        b"null",
        b"~",
        b"???",
        b"defaults: [",
        b"#",
        b"\r",
        b"[" * 300,
    ),
]


def bomb(noise: random.Random) -> bytes:
    """Little text that stands for very much, or goes very deep."""
    width, height = noise.randrange(2, 12), noise.randrange(3, 60)
    match noise.randrange(5):
        case 0:
            rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, height)]
            return "\n".join(["a0: &a0 [x, y]", *rows]).encode()
        case 1:
            rows = [f"a{i}: [{', '.join([f'${{a{i - 1}}}'] * width)}]" for i in range(1, height)]
            return "\n".join(["a0: xx", *rows]).encode()
        case 2:
            rows = [f"a{i}: '{f'${{.a{i - 1}}}' * width}'" for i in range(1, height)]
            return "\n".join(["a0: xx", *rows]).encode()
        case 3:
            return b"a: " + b"[{b: " * (height * 10)
    return "\n".join(f"a{i}: {i}" for i in range(height * 20)).encode()


def bad_configs(noise: random.Random, num: int, folder: Path) -> Iterator[tuple[bytes, list[str]]]:
    """A file's content, and overrides."""
    whole = load_config(FILES[0].parents[0] / "quickstart.yaml", [])
    save_resolved(whole, folder / "whole.yaml")
    seeds = [file.read_bytes() for file in (*FILES, folder / "whole.yaml")]
    good = (folder / "whole.yaml").read_bytes()
    keys = list(dotted(whole.model_dump(mode="json")))
    for _ in range(num):
        match noise.randrange(4):
            case 0 | 1:
                yield altered(noise, noise.choice(seeds), YAML_TOKENS), []
            case 2:
                written = yaml.safe_dump(value(noise), default_flow_style=True, width=math.inf).removesuffix("...\n")
                text = noise.choice([written, noise.choice(YAML_TOKENS).decode("utf-8", "surrogateescape")])
                yield good, [f"{noise.choice(keys)}={text.strip()}"]
            case _:
                yield bomb(noise), []


def dotted(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, each in section.items():
        yield f"{prefix}{name}"
        if isinstance(each, dict):
            yield from dotted(each, f"{prefix}{name}.")


def configs_are_refused(num: int, folder: Path) -> None:
    def load(given: tuple[bytes, list[str]]) -> None:
        (folder / "config.yaml").write_bytes(given[0])
        load_config(folder / "config.yaml", given[1])

    assert num_refused(bad_configs(random.Random(0), num, folder), load, (UserError,)) > num * 0.6


# ---- JSON Lines, and the CSV and JSON files beside them

JSON_TOKENS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\n", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\\ud800"),
    *(b"\\u0000", b"9" * 5_000, b"1e999", b"-", b"NaN", b"Infinity", b"null", b"true", b"[" * 3_000, b'{"a":' * 3_000),
    *(b"\xe2\x80\xa8", b"-1", b"1.5", b'"x"', b"{}", b"[]"),
]
EVENTS = [
    Span("compute", 0, 1, 2, 0, 0.5, 1.5, 0, 2.25),
    Dropped(1, 2, "refused", "client 2, round 1: too large", has_sent=True),
    Committed(0, 1, 2.0, (2, 0), (10.0, 5.0), 15, 0.5, 0.01, (), (1,)),
]
METRICS = {"value": 1.5, "standard_error": None, "num_examples": 3}
SEEDS: dict[str, list[Any]] = {
    "data": [
        {"instruction": "Add 1 and 2.", "input": "", "output": "3", "task": "sum", "client": 4},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"instruction": "a", "instances": [{"input": "b", "output": "c"}]},
    ],
    "gsm8k": [{"question": "1 + 1?", "answer": "2\n#### 2"}],
    "choice": [{"question": "which?", "choices": ["a", "b"], "answer": 1}],
    "ifeval": [
        {
            "prompt": "say it",
            "instruction_id_list": ["length_constraints:number_words", "detectable_format:json_format"],
            "kwargs": [{"num_words": 3, "relation": "at least"}, {}],
        }
    ],
    "mt_bench": [{"question_id": 1, "turns": ["a", "b"]}],
    "events": [as_row(event) for event in EVENTS],
    "metrics": [{"round": 0, "loss": 1.5, "seconds": 1.0, "bytes_up": 1, "bytes_down": 1, "bytes_catch_up": 0}],
    "evaluations": [{"round": 1, "results": {"held_out": {"loss": METRICS}}}],
    "evaluation": [{"held_out": {"loss": METRICS}}],
    "sweep.json": [{"name": "a", "runs": ["a-seed0", "b-seed0"]}],
}
LINKS = b"client,up_mbps,down_mbps,latency_ms,compute_factor\n0,20,100,14,1\n1,12,12,35,2.5\n"


def instructed(row: InstructionRow) -> list[Instruction]:
    return [Instruction(name, given) for name, given in zip(row.instruction_id_list, row.arguments, strict=True)]


READERS: dict[str, Callable[[Path], object]] = {
    "data": lambda file: read_examples(DataConfig(source=str(file)), 0),
    "gsm8k": lambda file: read_rows(file, GSM8KRow, 9, lambda row: row),
    "choice": lambda file: read_rows(file, ChoiceRow, 9, lambda row: row),
    "ifeval": lambda file: read_rows(file, InstructionRow, 9, instructed),
    "mt_bench": lambda file: read_rows(file, ConversationRow, 9, lambda row: row),
    "events": lambda file: list(read_events(file)),
    "metrics": lambda file: [checked_round(from_json(line)) for _, line in lines(file)],
    "evaluations": lambda file: [checked_row(from_json(line)) for _, line in lines(file)],
    "evaluation": lambda file: checked_results(json_file(file)),
    "sweep.json": lambda file: sweep_runs(file.parent),
    "links": lambda file: read_link_trace(file, 2),
}

TOLD_BY_CALLERS = {"events", "metrics", "evaluations", "evaluation"}  # these raise ValueError, who calls them UserError


def wrong_somewhere(noise: random.Random, row: Any) -> Any:
    """The row with another value in some place."""
    if not isinstance(row, dict | list) or not row or noise.random() < 0.2:
        return value(noise)
    made: Any = dict(row) if isinstance(row, dict) else list(row)
    key = noise.choice(list(made)) if isinstance(made, dict) else noise.randrange(len(made))
    made[key] = wrong_somewhere(noise, made[key])
    return made


def bad_lines(noise: random.Random, num: int) -> Iterator[tuple[str, bytes]]:
    """Which reader, and a file's content."""
    for _ in range(num):
        kind = noise.choice(list(READERS))
        rows = SEEDS.get(kind, [])
        if kind == "links" or noise.random() < 0.5:
            content = LINKS if kind == "links" else "".join(json.dumps(row) + "\n" for row in rows).encode()
            yield kind, altered(noise, content, JSON_TOKENS)
        else:
            made = [wrong_somewhere(noise, row) if noise.random() < 0.6 else row for row in rows]
            yield kind, "".join(json.dumps(row) + "\n" for row in made).encode()


def files_are_refused(num: int, folder: Path) -> None:
    def read(given: tuple[str, bytes]) -> None:
        kind, content = given
        file = folder / (kind if kind == "sweep.json" else f"{kind}.jsonl")
        file.write_bytes(content)
        try:
            READERS[kind](file)
        except ValueError as error:
            if kind not in TOLD_BY_CALLERS:
                raise
            raise UserError(str(error)) from None

    assert num_refused(bad_lines(random.Random(1), num), read, (UserError,)) > num * 0.5


# ---- checkpoints


def seal(folder: Path, content: Any) -> None:
    """A manifest whose hash is right, whatever it says: as somebody would write it who knows how."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"content": content, "sha256": digest}))


def tensors(noise: random.Random) -> dict[str, torch.Tensor]:
    names = ["0.1", "0.2", "1.2", "x.y", "1", "a.b.c", "-1.5", "parameters.a", "9" * 5_000 + ".1"]
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.int64]
    shapes = [[4], [0], [], [2, 3]]
    return {name: torch.zeros(noise.choice(shapes), dtype=noise.choice(kinds)) for name in noise.sample(names, 3)}


def bad_checkpoints(noise: random.Random, num: int, root: Path) -> Iterator[Path]:
    files = ("state.safetensors", "uploads.safetensors")
    about = {"fingerprint": "a", "config": {}, "loss_before": 2.0, "num_events": 3}
    for _ in range(num):
        folder = checkpoint.begin(root, 3)
        good = {"x": torch.arange(5.0)}, {"3.0": torch.ones(4), "3.1": torch.ones(4)}
        told = good if noise.random() < 0.7 else (tensors(noise), tensors(noise))
        digests = {name: checkpoint.write_tensors(folder, name, each) for name, each in zip(files, told, strict=True)}
        folder = checkpoint.complete(folder, 3, digests, about)
        match noise.randrange(4):
            case 0:
                victim = folder / noise.choice([*files, "manifest.json"])
                victim.write_bytes(altered(noise, victim.read_bytes(), JSON_TOKENS))
            case 1:  # other bytes, of which the manifest tells the right hash
                victim = folder / noise.choice(files)
                victim.write_bytes(altered(noise, victim.read_bytes(), JSON_TOKENS))
                digests[victim.name] = hashlib.sha256(victim.read_bytes()).hexdigest()
                seal(folder, {"format": 1, "round": 3, "files": digests, "about": about})
            case 2:  # other files than its own
                name = noise.choice(
                    ["../../x", "/dev/zero", "/etc/hostname", "", ".", "..", "a/b", "a\0", "manifest.json"]
                )
                seal(folder, {"format": 1, "round": 3, "files": {**digests, name: "0" * 64}, "about": about})
            case _:
                content = {"format": 1, "round": 3, "files": digests, "about": about}
                seal(folder, wrong_somewhere(noise, content))
        yield folder


def checkpoints_are_refused(num: int, folder: Path) -> None:
    def load(made: Path) -> None:
        restored(checkpoint.read(made), staleness=1)

    assert num_refused(bad_checkpoints(random.Random(2), num, folder), load, (Damaged, UserError)) > num * 0.6


# ---- updates

WIRE = Wire(torch.float32, 16)
NUM_PARAMS = 8  # in two chunks


def bad_updates(noise: random.Random, num: int) -> Iterator[tuple[Sent, torch.Tensor | None]]:
    odd: list[Any] = [-1, 2, 3, 7, 10**30, True, None, 1.0, "0", [0], float("nan")]
    payloads: list[Callable[[], torch.Tensor | None]] = [
        lambda: None,
        lambda: torch.randn(noise.randrange(9)),
        lambda: torch.full((4,), noise.choice([math.nan, math.inf, -3e38, 1e-40, 0.0])),
        lambda: torch.zeros(
            4, dtype=noise.choice([torch.float64, torch.int32, torch.bool, torch.complex64, torch.bfloat16])
        ),
        lambda: torch.zeros(noise.choice([(), (2, 2), (4, 1), (0,)])),
        lambda: torch.ones(4).to_sparse(),
        lambda: torch.tensor([]).expand(0),
        lambda: torch.ones(1).expand(4),
    ]
    for _ in range(num):
        numbers = [noise.randrange(2), 5, noise.randrange(3), noise.randrange(2)]
        if noise.random() < 0.4:
            numbers[noise.randrange(4)] = noise.choice(odd)
        yield Sent(*numbers), torch.ones(4) if noise.random() < 0.3 else noise.choice(payloads)()


def updates_are_refused(num: int) -> None:
    """The gate never raises, and nothing passes that is not sound."""
    gate, noise = None, random.Random(3)
    num_passed = num_stopped = 0

    def take(given: tuple[Sent, torch.Tensor | None]) -> None:
        nonlocal gate, num_passed, num_stopped
        if gate is None or noise.random() < 0.1:
            gate = Gate(ServerConfig(max_norm=100.0), 1, WIRE, noise.random() < 0.5, torch.float32)
            for round in range(2):
                visits = tuple(Visit(client, 10, 10, 1 / 3) for client in range(3))
                gate.open(RoundPlan(round, 5, round - 2, visits, 0.1, frozenset()), dict.fromkeys(range(3), NUM_PARAMS))
        judged = gate.admit(*given)
        if isinstance(judged, Passed):
            for chunk in judged.chunks.values():
                assert (chunk.dtype, tuple(chunk.shape), bool(chunk.isfinite().all())) == (torch.float32, (4,), True)
            num_passed += 1
        else:
            assert isinstance(judged, Refused) <= bool(judged.why)
            num_stopped += 1

    assert num_refused(bad_updates(noise, num), take, ()) == 0
    assert min(num_passed, num_stopped) > num * 0.05


# ---- all of them


def test_some_malformed_inputs_give_clear_errors(tmp_path: Path) -> None:
    configs_are_refused(60, tmp_path)
    files_are_refused(400, tmp_path)
    checkpoints_are_refused(200, tmp_path / "checkpoints")
    updates_are_refused(500)


@pytest.mark.slow
def test_eleven_thousand_malformed_inputs_give_clear_errors(tmp_path: Path) -> None:
    configs_are_refused(1_500, tmp_path)
    files_are_refused(5_000, tmp_path)
    checkpoints_are_refused(2_000, tmp_path / "checkpoints")
    updates_are_refused(2_500)
