"""`parablock lora-sweep`: held-out loss against compression at many thresholds, from one run's uploaded adapters."""

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from parablock_ray.algorithms.adapters import client_ranks, find_targets
from parablock_ray.algorithms.base import Commit
from parablock_ray.algorithms.lora_costs import download_efficiency, download_params, paper_megabits
from parablock_ray.algorithms.lora_methods import starts_afresh
from parablock_ray.algorithms.lora_server import LoraServer
from parablock_ray.algorithms.methods import make_method
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.config.lora import CollectingMethod, FedExLoRA, FLoRIST
from parablock_ray.driver import prepare
from parablock_ray.errors import UserError
from parablock_ray.tracking.compare import read_run
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.model import load_model
from parablock_ray.training.uploads import read_uploads


@dataclass(frozen=True)
class SweepPoint:
    """What FLoRIST makes of the uploads at one threshold; ranks, parameters and efficiency are means over rounds.

    `compression`: the rank of FLoRA's stack over the rank that is kept. `megabits` is the paper's measure of a
    client's download in a round, `server_s` the server's arithmetic in all rounds.
    """

    threshold: float
    loss: float
    rank_sum: float  # over modules
    compression: float
    download_params: float
    download_efficiency: float
    megabits: float
    server_s: float


def numbers(text: str) -> list[float]:
    """What `--thresholds` says. Raises UserError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--thresholds: must be numbers with commas between (got {text!r})") from None


def sweep(folder: Path, thresholds: Sequence[float]) -> list[SweepPoint]:
    """Replay FLoRIST's server over the run's uploads, from the initial model, at each threshold.

    Where adapters start afresh in every round, the uploads of all rounds are merged; else those of the last round
    stand for the run. Clients trained beside the run's own aggregate: of the others this is what they would have
    been worth to it. Raises UserError for a folder without uploads and for thresholds outside (0, 1].
    """
    if not thresholds or not all(0 < each <= 1 for each in thresholds):
        raise UserError(f"--thresholds: must be over 0 and at most 1 (got {', '.join(map(str, thresholds))})")
    config = read_run(folder).config
    replay = _Replay(folder, config, _replayed(folder, config))
    return [replay.at(threshold) for threshold in sorted(set(thresholds))]


def _replayed(folder: Path, config: Config) -> FLoRIST:
    """The method whose server takes the uploads."""
    method = config.method
    if not isinstance(method, CollectingMethod) or isinstance(method, FedExLoRA):
        raise UserError(
            f"{folder}: a run of {method.name}; its uploads are no adapters of the initial model; allowed: runs of "
            "flora, florist, zero_pad, hetlora, flexlora"
        )
    if isinstance(method, FLoRIST):
        return method.model_copy(update={"keep_uploads": False})  # they are in the folder already
    round_init = "merge" if starts_afresh(method) else "carry"
    return FLoRIST(name="florist", lora=method.lora, round_init=round_init, rounds=method.rounds)


class _Replay:
    def __init__(self, folder: Path, config: Config, method: FLoRIST) -> None:
        self._config, self._method = config, method
        self._uploads = list(read_uploads(folder, method.rounds))
        prepared = prepare(config)
        self._examples, self._population = prepared.data.eval, prepared.population
        self._ranks = client_ranks(method.lora, config.clients.num, config.seed)

    def at(self, threshold: float) -> SweepPoint:
        model = load_model(self._config.model.name, "float32", self._config.seed)
        model.eval()
        parameters: dict[str, Tensor] = dict(model.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        shapes = [(each.m, each.n) for each in find_targets(parameters, self._method.lora.target_modules)]
        start_s = time.perf_counter()
        commits = self._commits(threshold, parameters, self._population)
        server_s = time.perf_counter() - start_s
        costs = [self._costs(commit, shapes) for commit in commits]
        means = {name: sum(each[name] for each in costs) / len(costs) for name in costs[0]}
        loss = held_out_loss(model, self._examples, self._config.method.batch_size)
        return SweepPoint(threshold=threshold, loss=loss, server_s=server_s, **means)

    def _commits(self, threshold: float, parameters: Mapping[str, Tensor], population: Population) -> list[Commit]:
        """Every round once more; the parameters hold the last one's model."""
        wire = Wire.of(self._config.network)
        method = self._method.model_copy(update={"threshold": threshold})
        server = LoraServer(method, population, parameters, wire, cut_through=False, rule=self._config.server.rule)
        schedule, commits = make_method(self._config.method, population), []
        for round, uploads in enumerate(self._uploads):
            plan = schedule.plan(round)
            one_for_all = tuple(
                replace(visit, variant=0) for visit in plan.visits if visit.client in uploads
            )  # FLoRIST's, whatever the run's
            server.open(replace(plan, visits=one_for_all))
            for client, upload in uploads.items():
                for chunk, (start, end) in enumerate(wire.bounds(upload.numel())):
                    made = server.receive(round, client, chunk, upload[start:end])
                    commits += [each for each in made if isinstance(each, Commit)]
        server.settle()
        return commits

    def _costs(self, commit: Commit, shapes: Sequence[tuple[int, int]]) -> dict[str, float]:
        ranks = [self._ranks[visit.client] for visit in commit.plan.visits]
        kept = [each.rank for each in commit.module_ranks]
        num_params = download_params("florist", shapes, ranks, kept)[0]
        return {
            "rank_sum": sum(kept),
            "compression": sum(ranks) * len(kept) / sum(kept),
            "download_params": num_params,
            "download_efficiency": download_efficiency("florist", shapes, ranks, kept),
            "megabits": paper_megabits(num_params),
        }


def sweep_table(points: Sequence[SweepPoint]) -> Table:
    """A row a threshold."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("threshold", "held-out\nloss", "rank,\nall modules", "compression", "parameters\ndown"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("download\nefficiency", "megabits\n(paper's MB)", "server\nseconds"):
        table.add_column(header, justify="right", no_wrap=True)
    for point in points:
        sizes = (f"{point.rank_sum:.0f}", f"{point.compression:.2f}x", f"{point.download_params:,.0f}")
        costs = (f"{point.download_efficiency:.3e}", f"{point.megabits:.2f}", f"{point.server_s:.2f}")
        table.add_row(f"{point.threshold:g}", f"{point.loss:.4f}", *sizes, *costs)
    return table


def write_csv(points: Sequence[SweepPoint], file: Path) -> None:
    """The points, a row each. Raises UserError."""
    rows = [asdict(point) for point in points]
    try:
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"--out: cannot write to {file}: {error.strerror}") from None


def write_svg(points: Sequence[SweepPoint], file: Path) -> None:
    """Held-out loss against compression, each point with its threshold."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([point.compression for point in points], [point.loss for point in points], marker="o")
    for point in points:
        at = (point.compression, point.loss)
        axes.annotate(f"τ={point.threshold:g}", at, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="compression over FLoRA's stack", ylabel="held-out loss", title="FLoRIST's threshold")
    axes.set_xscale("log")
    figure.savefig(file, format="svg")
