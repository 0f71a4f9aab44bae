"""Folders as finished runs leave them, with figures of the test's choice."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parablock_ray.config import load_config, save_resolved
from parablock_ray.tracking.events import Committed, Span
from parablock_ray.tracking.trace import gantt_svg

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
VERSIONS = {"python": "3.12.1", "torch": "2.9.0"}
VIRTUAL = ("network.mode=virtual",)


def run_folder(
    folder: Path,
    *overrides: str,
    losses: Sequence[float] = (3.0, 2.0, 1.0),
    held_out: Sequence[float] = (),
    judged_on: str = "held_out",
    round_s: float = 10.0,
    **figures: Any,
) -> Path:
    """A finished run of as many rounds as there are `losses`, of `round_s` seconds and 3 MB each.

    `held_out`: the losses that evaluations on `judged_on` found, at even distances. `figures`: of the summary.
    """
    folder.mkdir(parents=True)
    rounds = f"method.rounds={len(losses)}"
    every = len(losses) // len(held_out) if held_out else None
    judged = [f"evaluation.every={every}", f"evaluation.during=[{judged_on}]"] if every else []
    config = load_config(QUICKSTART, [f"name={folder.name}", f"out={folder}", *VIRTUAL, rounds, *judged, *overrides])
    save_resolved(config, folder / "config.yaml")
    traffic = {"bytes_up": 10**6, "bytes_down": 10**6, "bytes_catch_up": 10**6}
    rows = [{"round": i, "loss": loss, "seconds": round_s, **traffic} for i, loss in enumerate(losses)]
    for number, loss in enumerate(held_out, 1):
        row = {"round": number * every - 1, "results": {judged_on: {"loss": {"value": loss}}}}
        with (folder / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "status": "done",
        "method": config.method.name,
        "seed": config.seed,
        "num_rounds": len(losses),
        "num_clients": config.clients.num,
        "num_workers": 2,
        "loss_before": 4.0,
        "loss_after": losses[-1],
        "seconds": len(losses) * round_s,
        "seconds_bound": len(losses) * round_s,
        "seconds_mode": config.network.mode,
        "overlap_efficiency": 1.0,
        **{key: value * len(losses) for key, value in traffic.items()},
        "server_s": 0.1 * len(losses),
        "weights_sha256": "0123456789abcdef" * 4,
        "versions": VERSIONS,
    }
    (folder / "summary.json").write_text(json.dumps(summary | figures))
    spans = [Span("compute", 0, 0, client, 0, 0.0, 1.0) for client in range(2)]
    (folder / "timeline.svg").write_text(
        gantt_svg([*spans, Committed(0, 0, 1.0, (0, 1), (1.0, 1.0), 2, 1.0, 0.1)], "a")
    )
    return folder


def sweep_folder(folder: Path, *, num_seeds: int = 2) -> Path:
    """FedBCD against ParaBlock: the same losses sooner, and a little better from seed to seed."""
    for seed in range(num_seeds):
        losses = [4.0 - 0.1 * seed, 3.0, 2.0, 1.5 + 0.1 * seed, 1.2 + 0.1 * seed, 1.0 + 0.1 * seed]
        common = (f"seed={seed}",)
        run_folder(folder / f"fedbcd-seed{seed}", *common, "method.name=fedbcd", losses=losses, round_s=10)
        better = [loss - 0.05 * (1 + seed) for loss in losses]
        run_folder(folder / f"parablock-seed{seed}", *common, losses=better, round_s=6)
    return folder
