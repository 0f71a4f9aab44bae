"""Secure aggregation in a run: the mean is the plain one of the fixed-point deltas, and only masked ones arrive."""

import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor

from parablock_ray.accounting import privacy_line
from parablock_ray.algorithms.aggregate import l2_norm
from parablock_ray.algorithms.block_server import BlockServer
from parablock_ray.algorithms.blocks import flatten, make_layout, unflatten_into
from parablock_ray.algorithms.privacy import clipped
from parablock_ray.checkpointing import Completer
from parablock_ray.config import load_config
from parablock_ray.driver import prepare
from parablock_ray.errors import RunFailed, UserError
from parablock_ray.planning.command import make_plan
from parablock_ray.resume import resume
from parablock_ray.runtime import cluster as cluster_module
from parablock_ray.runtime.client import ClientActor
from parablock_ray.secure.fixed_point import finest_fraction_bits
from parablock_ray.secure_terms import clip_before_rounding, fixed_point
from parablock_ray.training.master import Master
from parablock_ray.training.model import load_model, weights_sha256
from parablock_ray.training.worker import Worker
from tests.runtime.federation import METHODS, QUICKSTART, SHORT, rows, run_tiny
from tests.runtime.lora_runs import lora_config, run_lora
from tests.runtime.test_faults import refuse
from tests.runtime.test_resume import interrupted, summary

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SECURE = ["secure_aggregation.enabled=true", "engine.name=torch", "data.split={name: quantity, alpha: 1}"]
SERIAL = [*SECURE, "runtime=serial"]
DROP = ["clients.on_error=drop", "clients.on_death=fail"]
CLIP = 0.002  # so that some numbers are cut
LOST = {(1, 1), (3, 2)}  # (round, client)


class Spy:
    """What clients train, what the server is sent, and what it makes a step of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deltas: dict[tuple[int, int], Tensor] = {}  # (round, client) → delta
        self.sent: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self.means: list[tuple[Tensor, int]] = []
        train, receive, receive_sum = Worker.train, Master.receive, BlockServer.receive_sum

        def spied_train(worker, plan, visit, put):
            trained = train(worker, plan, visit, put)
            self.deltas[plan.round, visit.client] = torch.cat(trained.chunks)
            return trained

        def spied_receive(master, sent, values):
            self.sent[sent.round, sent.client].append(values.clone())
            return receive(master, sent, values)

        def spied_sum(server, round, steps, scale, sum_of_weights):
            self.means.append(((steps.double() / scale / sum_of_weights).float(), sum_of_weights))
            return receive_sum(server, round, steps, scale, sum_of_weights)

        monkeypatch.setattr(Worker, "train", spied_train)
        monkeypatch.setattr(Master, "receive", spied_receive)
        monkeypatch.setattr(BlockServer, "receive_sum", spied_sum)


def steps_of(delta: Tensor, fraction_bits: int) -> np.ndarray:
    """The fixed-point numbers of a delta, int64."""
    return np.round(np.clip(delta.double().numpy(), -CLIP, CLIP) * 2.0**fraction_bits).astype(np.int64)


def plain_mean(deltas: dict[int, Tensor], weights: dict[int, int], fraction_bits: int) -> np.ndarray:
    total = sum(weights[client] * steps_of(delta, fraction_bits) for client, delta in deltas.items())
    num_examples = sum(weights[client] for client in deltas)
    return (total / 2**fraction_bits / num_examples).astype(np.float32)


@pytest.mark.parametrize("method", ["fedbcd", "parablock"])
def test_a_run_takes_the_plain_means_of_what_its_clients_trained(tmp_path, monkeypatch, method):
    overrides = [*METHODS[method], *SERIAL, "secure_aggregation.clip=0.002", "network.chunk_mb=0.1", "method.rounds=3"]
    spy = Spy(monkeypatch)
    found = run_tiny(tmp_path / "run", overrides)
    config = load_config(QUICKSTART, [*SHORT, *overrides, f"out={tmp_path}"])
    weights = dict(enumerate(prepare(config).population.num_examples))
    fraction_bits = finest_fraction_bits(32, CLIP, max(weights.values()), 4)
    assert len(set(weights.values())) > 1
    assert any(float(delta.abs().max()) > CLIP for delta in spy.deltas.values())

    model = load_model("tiny", "float32", config.seed)
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    layout = make_layout(parameters, config.method.num_blocks, config.method.parameters)
    commits = [row for row in rows(tmp_path / "run" / "events.jsonl") if row["event"] == "committed"]
    for commit, (mean, sum_of_weights) in zip(commits, spy.means, strict=True):
        deltas = {client: spy.deltas[commit["round"], client] for client in range(4)}
        assert mean.numpy().tobytes() == plain_mean(deltas, weights, fraction_bits).tobytes()
        assert sum_of_weights == commit["num_examples"] == sum(weights.values())
        assert commit["participants"] == [0, 1, 2, 3]
        assert commit["weights"] == [1, 1, 1, 1]  # the plan tells nobody's
        block = [parameters[name] for name in layout.blocks[commit["block"]].names]
        unflatten_into(flatten(block, torch.float32) + mean, block)
    assert found["weights_sha256"] == weights_sha256(parameters.items())

    for (round, client), chunks in spy.sent.items():
        words, delta = torch.cat(chunks).numpy(), spy.deltas[round, client]
        assert words.dtype == np.int32
        assert len(chunks) > 1
        assert len(words) == len(delta) + 1
        masks = words[:-1] - (weights[client] * steps_of(delta, fraction_bits)).astype(np.int32)
        for uniform in (words, masks):  # of what is not masked almost all is near 0
            assert np.abs(uniform / 2**31).mean() == pytest.approx(0.5, abs=0.02)

    traffic = make_plan(config, "1.0").traffic
    assert found["bytes_up"] == traffic["up"].total_bytes
    assert found["bytes_down"] == traffic["down"].total_bytes
    control = 3 * 29 + 100 + 96 * 3 + 37 * 4  # docs/secure-aggregation.md
    assert found["bytes_up"] == sum(4 * (len(each) + 1) + control for each in spy.deltas.values())


def test_factors_are_averaged_too_and_in_64_bits(tmp_path, monkeypatch):
    wide = ["secure_aggregation.bits=64", "secure_aggregation.clip=0.002", "network.wire_dtype=bfloat16"]
    spy = Spy(monkeypatch)
    found = run_lora(tmp_path / "run", "fedit-delayed", [*SERIAL, *wide])
    config = lora_config(tmp_path, "fedit-delayed", [*SERIAL, *wide])
    weights = dict(enumerate(prepare(config).population.num_examples))
    fraction_bits = finest_fraction_bits(64, CLIP, max(weights.values()), 4)
    for round, (mean, _) in enumerate(spy.means):
        deltas = {client: spy.deltas[round, client] for client in range(4)}
        assert mean.numpy().tobytes() == plain_mean(deltas, weights, fraction_bits).tobytes()
    assert {chunk.dtype for chunks in spy.sent.values() for chunk in chunks} == {torch.int64}
    assert found["bytes_up"] == make_plan(config, "1.0").traffic["up"].total_bytes


def test_the_same_deltas_are_never_sent_in_the_same_words(tmp_path, monkeypatch):
    runs = []
    for name in ("first", "second"):
        with monkeypatch.context() as patch:
            spy = Spy(patch)
            runs.append((spy, run_tiny(tmp_path / name, SERIAL)["weights_sha256"]))
    (first, sha256), (second, again) = runs
    assert sha256 == again
    for key, delta in first.deltas.items():
        assert torch.equal(delta, second.deltas[key])
        assert float((torch.cat(first.sent[key]) == torch.cat(second.sent[key])).double().mean()) < 0.001


@pytest.fixture(scope="module")
def lossy(tmp_path_factory) -> Path:
    """A serial run whose clients of LOST fail once their shares are out."""
    out = tmp_path_factory.mktemp("runs") / "lossy"
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, *LOST)
        run_tiny(out, [*SERIAL, *DROP])
    return out


def test_who_was_left_out_from_the_start_changes_the_sum_as_who_drops_out(tmp_path, lossy):
    sums = [row["num_examples"] for row in rows(lossy / "metrics.jsonl")]
    assert sums[1] < sums[0] == sums[2] == sums[4]
    again = run_tiny(tmp_path / "again", [*SERIAL, f"clients.participation={lossy / 'events.jsonl'}"])
    assert again["num_dropped"] == len(LOST)
    assert again["weights_sha256"] == summary(lossy)["weights_sha256"]
    assert [row["num_examples"] for row in rows(tmp_path / "again" / "metrics.jsonl")] == sums


class Failing(ClientActor):
    async def load(self):
        await super().load()
        batches = self._worker._batches

        def fail(round, client, num_steps):
            if (round, client) in LOST:
                raise MemoryError("out of memory")
            return batches(round, client, num_steps)

        self._worker._batches = fail


def test_ray_ends_in_the_serial_weights(cluster, tmp_path, monkeypatch, lossy):
    """In smaller chunks, and with the same clients lost on the way."""
    monkeypatch.setattr(cluster_module, "ClientActor", Failing)
    found = run_tiny(tmp_path / "ray", [*SECURE, *DROP, "workers.num=2", "network.chunk_mb=0.1"])
    for key in ("num_dropped", "weights_sha256", "loss_after", "bytes_up", "bytes_down", "bytes_catch_up"):
        assert found[key] == summary(lossy)[key]


def test_with_too_many_lost_nothing_is_unmasked(tmp_path, monkeypatch):
    refuse(monkeypatch, (1, 1), (1, 2))
    too_few = "round 1: 2 of 4 clients have sent their vectors, fewer than the threshold, 3; no sum can be unmasked"
    with pytest.raises(RunFailed, match=too_few):
        run_tiny(tmp_path / "run", [*SERIAL, *DROP])
    lost = [f'{{"event": "dropped", "round": 0, "client": {client}, "why": "lost", "detail": ""}}' for client in (0, 3)]
    log = tmp_path / "events.jsonl"
    log.write_text("\n".join(lost))
    too_few = r"round 0: 2 client\(s\) left; secure aggregation unmasks no sum of fewer than 3 \(secure_aggregation"
    with pytest.raises(RunFailed, match=too_few):
        run_tiny(tmp_path / "known", [*SERIAL, f"clients.participation={log}"])


def test_a_run_without_staleness_can_be_resumed(tmp_path):
    run_tiny(tmp_path / "run", [*METHODS["fedbcd"], *SERIAL, "checkpoint.every=1", "checkpoint.keep=100"])
    assert resume(interrupted(tmp_path / "run", tmp_path / "again", 2), [])
    assert summary(tmp_path / "again")["weights_sha256"] == summary(tmp_path / "run")["weights_sha256"]


def test_with_staleness_sigterm_leaves_no_checkpoint(tmp_path):
    config = load_config(QUICKSTART, [*SHORT, *SERIAL, f"out={tmp_path}"])
    with pytest.raises(RunFailed, match="ended by SIGTERM, without a checkpoint"):
        Completer(lambda *_: None, config, 0.0, 0).checkpoint_at(3)


def test_a_weight_beyond_the_largest_is_told_before_the_run(tmp_path):
    config = load_config(QUICKSTART, [*SHORT, *SERIAL, "secure_aggregation.max_weight=5", f"out={tmp_path}"])
    with pytest.raises(UserError, match=r"secure_aggregation.max_weight: must be at least \d+, the examples of one"):
        prepare(config)


PRIVATE = ["privacy.clip=0.3", "privacy.delta=1e-3", "privacy.seed=7", "secure_aggregation.clip=2"]


@pytest.mark.parametrize("noise_multiplier", [0, 0.5])
def test_a_private_sum_is_noised_and_divided_by_who_was_expected(tmp_path, monkeypatch, noise_multiplier):
    """All weigh 1, and a client that drops out counts as nothing."""
    refuse(monkeypatch, *LOST)
    means, receive_sum = [], BlockServer.receive_sum

    def spied_sum(server, round, steps, scale, sum_of_weights):
        before = flatten(server._tensors[server._open[round].plan.block], torch.float32)
        total = steps.double() / scale
        made = list(receive_sum(server, round, steps, scale, sum_of_weights))
        after = flatten(server._tensors[server._blocks[round]], torch.float32)
        means.append((total, (after - before).double(), sum_of_weights))
        return iter(made)

    monkeypatch.setattr(BlockServer, "receive_sum", spied_sum)
    private = [*PRIVATE, f"privacy.noise_multiplier={noise_multiplier}"]
    found = run_tiny(tmp_path / "run", [*SERIAL, *DROP, *private])
    assert [num for _, _, num in means] == [4 - sum(round == each for each, _ in LOST) for round in range(len(means))]
    noise = torch.cat([mean * 4 - total for total, mean, _ in means])
    assert float(noise.std()) == pytest.approx(noise_multiplier * 0.3, rel=0.01, abs=1e-6)
    assert found["num_dropped"] == len(LOST)
    assert [row["num_examples"] for row in rows(tmp_path / "run" / "metrics.jsonl")] == [0] * len(means)


def test_what_is_sent_in_private_is_cut_so_far_that_rounding_cannot_lift_it_above_the_clip(tmp_path, monkeypatch):
    coarse = [*PRIVATE, "privacy.noise_multiplier=0", "secure_aggregation.fraction_bits=11", "method.rounds=1"]
    spy = Spy(monkeypatch)
    run_tiny(tmp_path / "run", [*SERIAL, *coarse])
    kept = [l2_norm([delta]) / (0.3 - math.sqrt(len(delta)) / 2**12) for delta in spy.deltas.values()]
    assert 0.99 < max(kept) <= 1, "some were cut"
    too_few = ["secure_aggregation.fraction_bits=8"]
    with pytest.raises(UserError, match=r"secure_aggregation.fraction_bits: 8 are too few for privacy.clip 0.3 on"):
        run_tiny(tmp_path / "none", [*SERIAL, *coarse, *too_few])


def test_the_worst_that_rounding_does_is_allowed_for():
    """All numbers just above half a step, which lifts each by as much."""
    overrides = [*SERIAL, *PRIVATE, "privacy.noise_multiplier=0", "secure_aggregation.fraction_bits=9"]
    config = load_config(QUICKSTART, overrides)
    worst, encoding = torch.ones(10_000, dtype=torch.float64), fixed_point(config, largest=30)

    def sent(clip: float) -> float:
        words, _ = encoding.encode(clipped(worst, clip).numpy(), 1)
        return float(np.linalg.norm(encoding.as_signed(words) / encoding.scale))

    assert sent(clip_before_rounding(config, 0.3, len(worst))) <= 0.3 < sent(0.3)


def test_shares_of_the_noise_under_masks_on_both_runtimes(cluster, tmp_path, monkeypatch):
    """The server draws no noise and sees a sum that has it."""
    shares = [*PRIVATE, "privacy.noise=clients", "privacy.noise_multiplier=0.1", "clients.min_participants=3"]
    ends = [run_tiny(tmp_path / each, [*SECURE, *shares, f"runtime={each}"]) for each in ("serial", "ray")]
    for key in ("weights_sha256", "loss_after", "bytes_up", "epsilon"):
        assert ends[0][key] == ends[1][key]
    narrow = load_config(QUICKSTART, [*SHORT, *SERIAL, *shares, "secure_aggregation.clip=0.3", f"out={tmp_path}"])
    with pytest.raises(UserError, match=r"secure_aggregation.clip: must be at least 0.4732 with privacy.noise: client"):
        privacy_line(narrow)
