"""A run's figures as Ray's metrics: for Prometheus, on the metrics port of the driver's node, with `ray_` before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.util.metrics import Counter, Gauge

from parablock_ray.config import Config
from parablock_ray.tracking.evaluations import Results

Row = dict[str, Any]

_TAGS = ("run", "method")


@dataclass(frozen=True)
class OfRound:
    """A gauge: a figure of the last finished round, from its row of `metrics.jsonl`."""

    about: str
    of: Callable[[Row], float]


@dataclass(frozen=True)
class OfSpans:
    """A counter over all spans of one phase, from their rows of `events.jsonl`. Prometheus knows it with `_total`."""

    about: str
    phase: str
    of: Callable[[Row], float]


OF_ROUND: Mapping[str, OfRound] = {
    "parablock_rounds_done": OfRound("rounds that are over for all their clients", lambda row: row["round"] + 1),
    "parablock_loss": OfRound("training loss of the last round, weighted by examples", lambda row: row["loss"]),
    "parablock_round_seconds": OfRound("seconds from commit to commit", lambda row: row["seconds"]),
    "parablock_compute_seconds": OfRound("training of a client in a round, mean", lambda row: row["compute_s"]),
    "parablock_exchange_seconds": OfRound(
        "upload and download of a client in a round, mean", lambda row: row["upload_s"] + row["download_s"]
    ),
    "parablock_wait_seconds": OfRound("a client waits before a round, mean", lambda row: row["wait_s"]),
}
OF_SPANS: Mapping[str, OfSpans] = {
    "parablock_clients_done": OfSpans("visits of clients that are over", "download", lambda span: 1),
    "parablock_upload_bytes": OfSpans("payload to the server", "upload", lambda span: span["num_bytes"]),
    "parablock_download_bytes": OfSpans("payload of rounds to clients", "download", lambda span: span["num_bytes"]),
    "parablock_catch_up_bytes": OfSpans("payload of missed rounds", "catch_up", lambda span: span["num_bytes"]),
}
ROUNDS = "parablock_rounds"
OVERLAP_EFFICIENCY = "parablock_overlap_efficiency"


class RayMetricsSink:
    """Gauges and counters with the tags `run` and `method`. Ray collects them every ten seconds, until the driver ends.

    A resumed run counts from its first round on.
    """

    def __init__(self, config: Config) -> None:
        self._tags = {"run": config.name, "method": config.method.name}
        self._num_rounds = config.method.rounds
        self._of_round = {name: Gauge(name, metric.about, _TAGS) for name, metric in OF_ROUND.items()}
        self._of_spans = {name: Counter(name, metric.about, _TAGS) for name, metric in OF_SPANS.items()}
        self._rounds = Gauge(ROUNDS, "rounds that the run makes", _TAGS)
        self._overlap_efficiency = Gauge(OVERLAP_EFFICIENCY, "the bound over the run's seconds, at its end", _TAGS)

    def event(self, row: Row) -> None:
        for name, metric in OF_SPANS.items():
            if row.get("phase") == metric.phase and (value := metric.of(row)):  # Ray's counters refuse 0
                self._of_spans[name].inc(value, self._tags)

    def round(self, row: Row) -> None:
        self._rounds.set(self._num_rounds, self._tags)
        for name, metric in OF_ROUND.items():
            self._of_round[name].set(metric.of(row), self._tags)

    def evaluation(self, row: Row) -> None:
        pass

    def finish(self, summary: Row) -> None:
        self._overlap_efficiency.set(summary["overlap_efficiency"], self._tags)

    def final_evaluation(self, results: Results) -> None:
        pass

    def close(self) -> None:
        pass
