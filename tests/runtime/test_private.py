"""Private runs through the real driver: one client moves the model by no more than was accounted, both runtimes and a
resumed run end in the same noise, ε is told, and the key is gone when it is over."""

import hashlib
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parablock_ray.algorithms.aggregate import l2_norm
from parablock_ray.algorithms.block_replica import BlockReplica
from parablock_ray.config import load_config
from parablock_ray.driver import run
from parablock_ray.errors import UserError
from parablock_ray.reporting.progress import measures_in
from parablock_ray.reporting.runs import gather
from parablock_ray.reporting.tables import main_table
from parablock_ray.resume import resume
from parablock_ray.training.master import Master
from parablock_ray.training.worker import Worker
from tests.runtime import lora_runs
from tests.runtime.federation import QUICKSTART, SHORT, rows, run_tiny
from tests.runtime.test_resume import assert_same_end, interrupted

SEEDED = ["privacy.delta=1e-3", "privacy.seed=7", "data.split=iid", "engine.name=torch"]
POISSON = [
    *SEEDED,
    *("clients.num=20", "clients.per_round=4", "clients.sampling=poisson"),
    *("privacy.clip=0.3", "privacy.noise_multiplier=0.5", "method.rounds=6"),
]
MOVING = [*POISSON, "privacy.quantile=0.5", "privacy.count_noise=1.0"]
SHARES = [*SEEDED, "privacy.clip=0.3", "privacy.noise_multiplier=0.1", "privacy.noise=clients"]
SERIAL = ["runtime=serial"]


def parameters(folder: Path) -> torch.Tensor:
    """All of the final model as one vector, fp64."""
    tensors = load_file(folder / "model" / "model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("clip", ["0.05", "1e6"])
def test_another_clients_data_move_the_model_by_twice_the_clip_at_most(tmp_path, monkeypatch, clip):
    """One round of all four, without noise. Where the clip cuts nothing the same data move it by more than that."""
    overrides = [*SEEDED, *SERIAL, "method.name=fedavg", "method.num_blocks=1", "method.rounds=1"]
    overrides += [f"privacy.clip={clip}", "privacy.noise_multiplier=0"]
    run_tiny(tmp_path / "one", overrides)
    batches = Worker._batches

    def others(self, round, client, num_steps):
        return batches(self, round, 3 if client == 1 else client, num_steps)

    monkeypatch.setattr(Worker, "_batches", others)
    run_tiny(tmp_path / "other", overrides)
    moved = float((parameters(tmp_path / "one") - parameters(tmp_path / "other")).norm())
    bound = 2 * 0.05 / 4
    if clip == "0.05":
        assert 0 < moved < bound * 1.001  # the exported model is fp32
    else:
        assert moved > 2 * bound


def test_what_is_pending_is_what_was_cut_and_sent(tmp_path, monkeypatch):
    pending, sent = {}, {}
    remember, receive = BlockReplica.remember, Master.receive

    def remembering(self, plan, visit, upload):
        pending[plan.round, visit.client] = upload.clone()
        remember(self, plan, visit, upload)

    def receiving(self, each, values):
        sent.setdefault((each.round, each.client), []).append(values.clone())
        return receive(self, each, values)

    monkeypatch.setattr(BlockReplica, "remember", remembering)
    monkeypatch.setattr(Master, "receive", receiving)
    summary = run_tiny(tmp_path / "run", [*POISSON, *SERIAL, "network.wire_dtype=bfloat16"])
    assert summary["method"] == "parablock"
    assert pending.keys() == sent.keys()
    assert all(torch.equal(pending[visit], torch.cat(sent[visit])) for visit in pending)
    norms = [l2_norm([upload]) for upload in pending.values()]
    assert max(norms) <= 0.3
    assert max(norms) > 0.29, "some were cut"


@pytest.mark.parametrize("overrides", [MOVING, SHARES], ids=["moving", "shares"])
def test_a_resumed_run_draws_the_same_noise_and_forgets_it_at_the_end(tmp_path, overrides):
    config = load_config(QUICKSTART, [*SHORT, *overrides, *SERIAL, "checkpoint.every=1", f"out={tmp_path / 'run'}"])
    run(config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 10})}))
    assert not (tmp_path / "run" / "privacy.key").exists()
    assert not resume(tmp_path / "run", ["method.rounds=9"]), "a private run that is over is over for good"
    cut = interrupted(tmp_path / "run", tmp_path / "cut", round=2)
    with pytest.raises(UserError, match=r"privacy\.key: the key of this private run cannot be read"):
        resume(cut, [])
    (cut / "privacy.key").write_text(hashlib.sha256(b"privacy.seed 7").hexdigest())
    assert resume(cut, [])
    assert_same_end(tmp_path / "run", cut)
    assert not (cut / "privacy.key").exists()


def test_ray_ends_in_the_serial_weights(cluster, tmp_path):
    keys = ("weights_sha256", "loss_after", "epsilon", "noise_multiplier")
    ends = [run_tiny(tmp_path / name, [*MOVING, f"runtime={name}"]) for name in ("serial", "ray")]
    assert [ends[0][key] for key in keys] == [ends[1][key] for key in keys]
    told = [
        [(row["clip"], row["epsilon"]) for row in rows(tmp_path / name / "metrics.jsonl")] for name in ("serial", "ray")
    ]
    assert told[0] == told[1]
    assert len({clip for clip, _ in told[0]}) == 6 - 2, "round 0 to 2 know of no other round, with staleness 1"


def test_the_noise_is_a_secret_and_the_epsilon_is_told(tmp_path, monkeypatch):
    """Two runs of one config differ in their noise and draws; nobody but the owner may read the key."""
    modes, opened = [], Master.__init__

    def looking(self, config, population, data, run_folder, attempt):
        modes.append(stat.S_IMODE((run_folder / "privacy.key").stat().st_mode))
        assert population.key is None
        opened(self, config, population, data, run_folder, attempt)

    monkeypatch.setattr(Master, "__init__", looking)
    secret = [*POISSON, *SERIAL, "privacy.seed=null", "privacy.max_epsilon=9"]
    ends = [run_tiny(tmp_path / name, secret) for name in ("one", "two")]
    assert modes == [0o600, 0o600]
    assert ends[0]["weights_sha256"] != ends[1]["weights_sha256"]
    epsilons = [row["epsilon"] for row in rows(tmp_path / "one" / "metrics.jsonl")]
    assert epsilons == sorted(epsilons)
    assert ends[0]["num_rounds"] == len(epsilons) < 6, "the budget ends it"
    assert ends[0]["epsilon"] == epsilons[-1] <= 9
    assert (ends[0]["delta"], ends[0]["adjacency"]) == (1e-3, "add_or_remove_one_client")
    gathered = gather([tmp_path / "one"])
    assert gathered.left_out == []
    [row] = main_table(gathered.groups, {gathered.groups[0].label: gathered.groups[0]}, measures_in(gathered.groups)[0])
    assert row["epsilon"] == f"{epsilons[-1]:.3g} (delta 0.001)"


@pytest.mark.parametrize("method", ["fedit", "ffa_lora"])
def test_factors_are_cut_and_noised(tmp_path, method):
    private = [*SEEDED, *SERIAL, "privacy.clip=0.01", "privacy.noise_multiplier=0.01", "method.rounds=2"]
    summary = run(lora_runs.lora_config(tmp_path / "run", method, private))
    assert summary["epsilon"] > 1000
    assert summary["loss_after"] < summary["loss_before"]
