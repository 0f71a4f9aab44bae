"""Before a run: the plan's seconds are the closed forms', its bytes are the run's, and it changes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from parablock_ray import cli
from parablock_ray.config import load_config
from parablock_ray.driver import prepare
from parablock_ray.errors import UserError
from parablock_ray.planning import command
from parablock_ray.planning.command import make_plan
from parablock_ray.planning.plan import Plan
from parablock_ray.planning.scenario import Scenario
from parablock_ray.planning.tables import parts
from parablock_ray.runtime.base import RunSetup
from parablock_ray.runtime.serial import SerialRuntime
from parablock_ray.server_memory import first_traffic, server_bytes
from parablock_ray.training import worker as worker_module
from parablock_ray.training.engine import make_engine
from parablock_ray.training.model import load_model, model_shapes, weights_sha256
from tests.runtime.federation import METHODS, QUICKSTART, SHORT, run_tiny

ROOT = Path(__file__).parents[1]
BLOCK_BYTES = 4 * 295_424  # two of the tiny model's decoder layers
# Four equal blocks and two equal clients, each a computer of its own, one local step a visit.
EQUAL = [
    "runtime=serial",
    "network.mode=virtual",
    "clients.num=2",
    "data.split=iid",
    "method.parameters=layers",
    "method.local_steps=1",
]


def plan_of(*overrides: str, compute_s: str | None = "1") -> Plan:
    return make_plan(load_config(QUICKSTART, [*SHORT, *overrides]), compute_s)


def exchanging(u: float, d: float, num_chunks: int = 16) -> list[str]:
    """A block goes up in `u` and comes down in `d` seconds."""
    mbits = BLOCK_BYTES * 8 / 1e6
    chunk_mb = -(-BLOCK_BYTES // num_chunks) / 1e6
    return [f"network.up_mbps={mbits / u}", f"network.down_mbps={mbits / d}", f"network.chunk_mb={chunk_mb}"]


def seconds_of(plan: Plan) -> dict[tuple[str, str, str], float | None]:
    return {(case.method, case.pipeline, case.exchange): case.total_s for case in plan.cases}


# ---- seconds


@pytest.mark.parametrize(
    ("m_half", "staleness", "method", "pipeline", "exchange", "seconds"),
    [
        (1.0, 1, "fedbcd", "serial", "store_and_forward", 300),
        (1.0, 1, "parablock", "serial", "store_and_forward", 201),
        (1.0, 1, "parablock", "duplex", "store_and_forward", 151),
        (1.0, 1, "parablock", "serial", "cut_through", 107.25),
        (1.0, 1, "parablock", "duplex", "cut_through", 104.125),
        (1.5, 1, "fedbcd", "duplex", "store_and_forward", 400),
        (1.5, 1, "parablock", "serial", "store_and_forward", 301),
        (1.5, 1, "parablock", "duplex", "store_and_forward", 201.5),
        (2.0, 1, "parablock", "duplex", "store_and_forward", 252),
        (2.0, 2, "parablock", "duplex", "store_and_forward", 203),
        (2.0, 2, "parablock", "serial", "store_and_forward", 401),
    ],
)
def test_seconds_are_those_of_the_closed_forms(
    m_half: float, staleness: int, method: str, pipeline: str, exchange: str, seconds: float
) -> None:
    """The examples of docs/time.md, of 100 rounds."""
    made = plan_of(*EQUAL, *exchanging(m_half, m_half), "method.rounds=100", f"method.staleness={staleness}")
    assert seconds_of(made)[method, pipeline, exchange] == pytest.approx(seconds, rel=1e-9)
    assert [block.visit_s for block in made.blocks] == [1.0] * 4
    assert [block.upload_s for block in made.blocks] == pytest.approx([m_half] * 4)


def table_of_the_docs() -> list[list[str]]:
    """The figures of docs/time.md: c, u = d, exchange, and seconds in the order of its columns."""
    lines = (ROOT / "docs" / "time.md").read_text("utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if re.match(r"\| 1 \| [0-9.]+ \| (store|cut)", line)]


@pytest.mark.parametrize("row", table_of_the_docs(), ids=" ".join)
def test_the_docs_print_what_the_plan_says(row: list[str]) -> None:
    c, m_half, exchange, *printed = row
    network = exchanging(float(m_half), float(m_half), num_chunks=16)
    of_staleness = [
        seconds_of(plan_of(*EQUAL, *network, "method.rounds=100", f"method.staleness={staleness}", compute_s=c))
        for staleness in (1, 2)
    ]
    how = "cut_through" if exchange.startswith("cut") else "store_and_forward"
    seconds = [of_staleness[0]["fedbcd", "serial", how]]
    seconds += [each["parablock", pipeline, how] for pipeline in ("serial", "duplex") for each in of_staleness]
    assert [f"{each:.6g}" for each in seconds] == printed


def test_the_rows_and_which_is_the_configs_own() -> None:
    made = plan_of(*EQUAL, *exchanging(1, 1), "network.pipeline=duplex", "method.rounds=100")
    assert len(made.cases) == 8
    own = made.configured
    assert (own.method, own.staleness, own.pipeline, own.exchange) == ("parablock", 1, "duplex", "store_and_forward")
    assert own.round_s == pytest.approx(1.51)
    assert own.speed == pytest.approx(300 / 151)  # over FedBCD on the same network
    fedbcd = plan_of(*EQUAL, *exchanging(1, 1), "method.name=fedbcd", "method.rounds=100")
    assert (fedbcd.configured.method, fedbcd.configured.speed) == ("fedbcd", 1.0)
    assert seconds_of(fedbcd) == seconds_of(made)


@pytest.mark.parametrize("method", METHODS)
def test_a_virtual_run_takes_what_its_plan_says(tmp_path: Path, method: str) -> None:
    """Unequal clients, sampled ones, all methods: the very seconds and bytes of the summary."""
    overrides = [
        *METHODS[method],
        "runtime=serial",
        "network.mode=virtual",
        "network.preset=lte",
        "network.up_mbps={dist: uniform, low: 4, high: 12}",
        "network.compute_factor={dist: lognormal, median: 1, sigma: 0.5}",
        "network.compute_s=0.3",
    ]
    made = plan_of(*overrides, compute_s=None)
    summary = run_tiny(tmp_path, overrides)
    assert made.configured.total_s == pytest.approx(summary["seconds"], rel=1e-9)
    assert {f"bytes_{name}": each.total_bytes for name, each in made.traffic.items()} == {
        key: summary[key] for key in ("bytes_up", "bytes_down", "bytes_catch_up")
    }
    assert (summary["bytes_catch_up"] > 0) == (method in ("parablock-sampled", "fedavg-delayed", "fedcybgd"))


@pytest.mark.parametrize("method", ["fedavg", "fedcybgd"])
def test_methods_of_one_block_and_of_one_client_have_the_rows_that_exist(method: str) -> None:
    made = plan_of(*METHODS[method], "network.mode=virtual", "network.preset=lte", "runtime=serial")
    staleness = [case.staleness for case in made.cases]
    assert staleness == ([0] * 4 + [1] * 4 if method == "fedavg" else [0] * 4)
    assert {case.method for case in made.cases} == {method}
    assert made.configured.staleness == 0


def test_clients_of_a_worker_take_turns_in_shaped_time() -> None:
    link = ["network.mode=shaped", "network.up_mbps=1e9", "network.down_mbps=1e9", "method.rounds=10"]
    one_each = plan_of(*link, "workers.num=4", "method.local_steps=2")
    in_turn = plan_of(*link, "workers.num=2", "method.local_steps=2")
    assert one_each.configured.total_s == pytest.approx(20, rel=1e-3)
    assert in_turn.configured.total_s == pytest.approx(40, rel=1e-3)
    assert in_turn.who.clients_of == ((0, 2), (1, 3))


def test_a_step_may_differ_by_block() -> None:
    made = plan_of(*EQUAL, *exchanging(1, 1), "method.rounds=4", compute_s="1,2,3,4")
    assert [block.step_s for block in made.blocks] == [1, 2, 3, 4]
    assert seconds_of(made)["fedbcd", "serial", "store_and_forward"] == pytest.approx(10 + 4 * 2)


def test_a_row_that_cannot_be_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    total_s = Scenario.total_s

    def refusing(scenario: Scenario, network: Any) -> float:
        if network.exchange == "cut_through":
            raise UserError("network.exchange: cut_through needs equal messages")
        return total_s(scenario, network)

    monkeypatch.setattr(Scenario, "total_s", refusing)
    made = plan_of(*EQUAL, *exchanging(1, 1))
    assert sum(case.total_s is None for case in made.cases) == 4
    text = "\n".join(part for part in parts(made) if isinstance(part, str))
    assert "left out: fedbcd cut_through serial: network.exchange: cut_through needs equal messages" in text
    with pytest.raises(UserError, match="cut_through needs equal messages"):
        plan_of(*EQUAL, *exchanging(1, 1), "network.exchange=cut_through")


# ---- bytes and memory


def test_bytes_of_a_client_and_of_a_round() -> None:
    made = plan_of(*EQUAL, "clients.num=3", "clients.per_round=2", "method.rounds=6", "network.wire_dtype=bfloat16")
    assert made.traffic["up"] == made.traffic["down"]
    up = made.traffic["up"]
    assert (up.total_bytes, up.round_bytes) == (12 * BLOCK_BYTES // 2, BLOCK_BYTES)
    assert up.client_mean_bytes == up.total_bytes / 3 <= up.client_max_bytes <= 6 * BLOCK_BYTES // 2
    assert made.blocks[0].wire_bytes == BLOCK_BYTES // 2


def test_memory_has_its_parts_by_name() -> None:
    worker, server = plan_of(*EQUAL[1:], "workers.num=1", "network.exchange=cut_through").memory
    model_bytes = 4 * sum(shape.numel() for shape in model_shapes("tiny").values())
    assert worker.parts_bytes == {
        "model": model_bytes,
        "clean copies, fp32": 2 * BLOCK_BYTES,
        "gradients": BLOCK_BYTES,
        "Adam moments, fp32": 2 * BLOCK_BYTES,
        "start of a visit, fp32": BLOCK_BYTES,
        "deltas pending or under way": 4 * BLOCK_BYTES,  # of two clients and two rounds
    }
    assert server.parts_bytes == {
        "master model, fp32": model_bytes,
        "previous values, fp32": BLOCK_BYTES,
        "sums or new value, fp32": 2 * BLOCK_BYTES,
        "uploads kept, at most": 2 * 2 * BLOCK_BYTES,  # of two clients and two rounds
    }
    assert (worker.process, worker.num_processes, worker.total_bytes) == ("worker", 1, model_bytes + 10 * BLOCK_BYTES)


@pytest.mark.parametrize(("limit", "kept"), [("null", 4), ("1", 1), ("3", 3), ("9", 4)])
def test_memory_of_updates_in_flight(limit: str, kept: int) -> None:
    _, server = plan_of(*EQUAL[1:], "clients.num=4", "workers.num=1", f"clients.max_in_flight={limit}").memory
    assert server.parts_bytes["uploads kept, at most"] == kept * BLOCK_BYTES


@pytest.mark.parametrize("method", [[], ["clients.num=4", "clients.per_round=2"]])
def test_ray_is_asked_for_what_is_told(method: list[str]) -> None:
    overrides = [*EQUAL[1:], "workers.num=1", *method]
    _, server = plan_of(*overrides).memory
    config = load_config(QUICKSTART, overrides)
    shapes = model_shapes(config.model.name)
    asked = server_bytes(config, shapes, first_traffic(config, prepare(config).population, shapes))
    assert sum(asked.values()) == server.total_bytes > 0


def test_memory_of_rules_that_need_all_updates_at_once() -> None:
    clients = ["clients.num=5", "clients.min_participants=5", "runtime=ray"]
    rule = "server.rule={name: krum, num_attackers: 1}"
    _, kept = plan_of(*EQUAL, *clients, rule).memory
    _, folded = plan_of(*EQUAL, *clients).memory
    assert kept.parts_bytes["uploads kept, at most"] == 2 * folded.parts_bytes["uploads kept, at most"]
    assert kept.parts_bytes["uploads kept, at most"] == 2 * 5 * BLOCK_BYTES
    assert kept.parts_bytes["sums or new value, fp32"] == BLOCK_BYTES


def test_memory_of_narrow_models_and_other_optimizers() -> None:
    changes = [
        "model.dtype=bfloat16",
        "method.local_optimizer=sgd",
        "method.prox_mu=0.1",
        "method.server_optimizer={name: adam}",
        "method.name=fedbcd",
    ]
    [driver] = plan_of(*EQUAL, *changes).memory
    parts_bytes, model_bytes = driver.parts_bytes, 4 * sum(shape.numel() for shape in model_shapes("tiny").values())
    assert driver.process == "driver"
    assert (parts_bytes["model"], parts_bytes["master model, fp32"]) == (model_bytes // 2, model_bytes)
    assert parts_bytes["clean copies, fp32"] == 4 * BLOCK_BYTES
    assert parts_bytes["masters, fp32"] == parts_bytes["FedProx anchors, fp32"] == BLOCK_BYTES
    assert parts_bytes["gradients"] == BLOCK_BYTES
    assert parts_bytes["server optimizer, fp32"] == 2 * 4 * BLOCK_BYTES
    assert not parts_bytes.keys() & {"Adam moments, fp32", "previous values, fp32"}


@pytest.mark.parametrize("seed", [0, 1])
def test_shapes_are_the_models(seed: int) -> None:
    real = dict(load_model("tiny", "float32", seed).named_parameters())
    shapes = model_shapes("tiny")
    assert {name: each.shape for name, each in shapes.items()} == {name: each.shape for name, each in real.items()}
    assert list(shapes) == list(real)
    assert {each.device.type for each in shapes.values()} == {"meta"}


# ---- advice


def told(made: Plan, start: str) -> str:
    [sentence] = [each for each in made.advice if each.startswith(start)]
    return sentence


def gain(made: Plan) -> float:
    seconds = seconds_of(made)
    network = (made.configured.pipeline, made.configured.exchange)
    fedbcd_s, parablock_s = seconds["fedbcd", *network], seconds["parablock", *network]
    assert fedbcd_s is not None
    assert parablock_s is not None
    return fedbcd_s / parablock_s


@pytest.mark.parametrize(
    ("c", "steps", "bound", "key", "value"),
    [
        (0.01, 1, "exchange", "local_steps", 200),  # c = 2 = u + d
        (40.0, 20, "compute", "local_steps", 1),
        (50.0, 1, "compute", "num_blocks", 1),  # fewer steps than one there are not
    ],
)
def test_advice_that_balances_gives_the_gain_it_says(c: float, steps: int, bound: str, key: str, value: int) -> None:
    overrides = [*EQUAL, *exchanging(1, 1), "method.rounds=20", f"method.local_steps={steps}"]
    compute_s = str(c / steps)
    made = plan_of(*overrides, compute_s=compute_s)
    assert f": {bound}-bound" in told(made, f"overlap gains {gain(made):.2f}x only")
    better = plan_of(*overrides, f"method.{key}={value}", compute_s=compute_s)
    assert f"a gain of {gain(better):.2f}x" in told(made, f"method.{key}={value} would balance them")
    assert gain(better) > gain(made)


def test_no_advice_where_overlap_is_worth_it() -> None:
    assert plan_of(*EQUAL, *exchanging(1, 1)).advice == ()


def test_fedbcd_is_told_of_parablock() -> None:
    made = plan_of(*EQUAL, *exchanging(1, 1), "method.name=fedbcd", "method.rounds=100")
    assert "201.0 s instead of 300.0 s (1.49x)" in told(made, "method.name=parablock method.staleness=1 would take")


def test_more_staleness_is_advised_where_it_helps() -> None:
    slow = [*EQUAL, *exchanging(2, 2), "method.rounds=100"]
    duplex = plan_of(*slow, "network.pipeline=duplex")
    assert told(duplex, "method.staleness=2 would take 203.0 s instead of 252.0 s (1.24x)")
    for enough in (["network.pipeline=duplex", "method.staleness=2"], ["network.pipeline=serial"]):
        assert plan_of(*slow, *enough).advice == ()


def test_a_network_of_mode_none_hides_nothing() -> None:
    [sentence] = plan_of("network.mode=none", "runtime=serial").advice
    assert sentence.startswith("network.mode is none: an exchange takes no time")
    assert "set network.mode=virtual" in sentence


def test_a_method_that_cannot_overlap_gets_no_advice() -> None:
    assert plan_of(*METHODS["fedcybgd"], *EQUAL[:2], *exchanging(1, 1)).advice == ()


# ---- seconds of a step


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.nn.Parameter]]:
    """The live parameters of every worker that is made."""
    made: list[dict[str, torch.nn.Parameter]] = []
    make_replica = worker_module.make_replica

    def noting(config: Any, population: Any, live: Any, wire: Any) -> Any:
        made.append(live.parameters)
        return make_replica(config, population, live, wire)

    monkeypatch.setattr(worker_module, "make_replica", noting)
    return made


@pytest.mark.parametrize("changes", [[], ["model.dtype=bfloat16"], ["method.weight_decay=0.1", "method.prox_mu=0.1"]])
def test_measuring_a_step_changes_no_weight(changes: list[str], replicas: list[dict[str, torch.nn.Parameter]]) -> None:
    config = load_config(QUICKSTART, [*SHORT, "runtime=serial", *changes])
    prepared = prepare(config)
    runtime = SerialRuntime(RunSetup(config, prepared.population, prepared.data, make_engine))
    runtime.start()
    [live] = replicas
    before = weights_sha256(live.items())
    seconds = runtime.step_seconds(num_steps=2)
    assert len(seconds) == 4
    assert all(each > 0 for each in seconds)
    assert weights_sha256(live.items()) == before


def test_a_run_after_measuring_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_tiny(tmp_path / "plain", ["runtime=serial"])
    start = SerialRuntime.start

    def measuring(runtime: SerialRuntime) -> Any:
        info = start(runtime)
        runtime.step_seconds(num_steps=1)
        return info

    monkeypatch.setattr(SerialRuntime, "start", measuring)
    assert run_tiny(tmp_path / "measured", ["runtime=serial"])["weights_sha256"] == plain["weights_sha256"]


def test_every_worker_of_a_cluster_is_measured(cluster: None, tmp_path: Path) -> None:
    made = plan_of("workers.num=2", f"out={tmp_path / 'run'}", compute_s=None)
    assert len(made.blocks) == 4
    assert all(block.step_s > 0 for block in made.blocks)
    assert set(made.peak_rss_bytes or ()) == {"driver", "server", "worker-0", "worker-1"}
    assert made.step_s_from.startswith("measured here")
    assert list(tmp_path.iterdir()) == []


def test_measuring_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    made = plan_of("runtime=serial", f"out={tmp_path / 'run'}", compute_s=None)
    assert set(made.peak_rss_bytes or ()) == {"driver"}
    assert list(tmp_path.iterdir()) == []


# ---- the command


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plan", str(QUICKSTART), *SHORT, *arguments])


SAMPLED = ["clients.num=7", "clients.per_round=3", "data.split=iid", "network.mode=virtual", "network.preset=lte"]


def test_the_command_prints_tables(tmp_path: Path) -> None:
    result = invoke(*SAMPLED, "--compute-s", "0.5", f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output
    for text in ("blocks: seconds of a step given by --compute-s", "*  parablock", "catch-up", "master model, fp32"):
        assert text in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object_on_the_last_line() -> None:
    result = invoke(*SAMPLED, "--compute-s", "0.5", "--json", "workers.num=2")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["who"]["clients_of"] == [[0, 2, 4, 6], [1, 3, 5]]
    assert [block["step_s"] for block in found["blocks"]] == [0.5] * 4
    assert sum(case["is_configured"] for case in found["cases"]) == 1
    assert found["traffic"]["catch_up"]["total_bytes"] > 0
    assert all(each["total_bytes"] == sum(each["parts_bytes"].values()) for each in found["memory"])
    assert found["peak_rss_bytes"] is None


@pytest.mark.parametrize("figures", ["0", "-1", "nan", "inf", "1,2", "1,2,3,0", "a", "", "1;2"])
def test_figures_that_cannot_be_are_refused(figures: str) -> None:
    result = invoke("--compute-s", figures)
    assert result.exit_code == 2
    assert result.stderr.startswith("--compute-s: must be seconds of a local step, over 0: one number, or one for each")
    assert f"(got {figures!r})" in result.stderr


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["method.num_blocks=9"], "method.num_blocks: 9 blocks but the model has 8 layers; allowed: 1 to 8"),
        (["network.trace=none.csv"], "network.trace: cannot read none.csv"),
        (["clients.participation=none.jsonl"], "clients.participation: none.jsonl cannot be read"),
        (["data.tasks=[chain_sum, chain_summ, gcd, lcm]"], "data.tasks: "),
        (["method.name=fedcybgd", "clients.per_round=2"], "clients.per_round: fedcybgd trains one client at a time"),
    ],
)
def test_what_a_run_refuses_a_plan_refuses(overrides: list[str], line: str) -> None:
    result = invoke("network.mode=virtual", *overrides)
    assert (result.exit_code, result.stderr[: len(line)]) == (2, line)
