"""What a run tells Ray's dashboard: its figures as metrics, its actors by their roles."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from parablock_ray import driver
from parablock_ray.config import load_config
from parablock_ray.runtime import metrics
from parablock_ray.runtime.make import runtime_sinks
from tests.runtime.federation import METHODS, QUICKSTART, rows, run_tiny

MONITORING = Path(__file__).parents[2] / "launch" / "monitoring"
GAUGES = {*metrics.OF_ROUND, metrics.ROUNDS, metrics.OVERLAP_EFFICIENCY}


class Recorder:
    """In the place of Ray's gauge or counter: keeps the value of each name and its tags."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.totals: Counter[str] = Counter()
        self.tags: set[tuple[tuple[str, str], ...]] = set()

    def gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        class Gauge:
            def set(_, value: float, tags: dict[str, str]) -> None:
                self.values[name] = value
                self.tags.add(tuple(tags.items()))

        return Gauge()

    def counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        class Counter:
            def inc(_, value: float, tags: dict[str, str]) -> None:
                assert value > 0  # Ray refuses another
                self.totals[name] += value
                self.tags.add(tuple(tags.items()))

        return Counter()


class Witness:
    """A sink that looks at the cluster when the run comes to its end."""

    def __init__(self) -> None:
        self.actors: list[dict[str, str]] = []

    def finish(self, summary: dict[str, Any]) -> None:
        self.actors = ray.util.list_named_actors(all_namespaces=True)

    def event(self, row: dict[str, Any]) -> None: ...
    def round(self, row: dict[str, Any]) -> None: ...
    def evaluation(self, row: dict[str, Any]) -> None: ...
    def final_evaluation(self, results: Any) -> None: ...
    def close(self) -> None: ...


@pytest.mark.smoke
def test_metrics_are_those_of_the_run_folder_and_actors_have_their_names(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, witness = Recorder(), Witness()
    monkeypatch.setattr(metrics, "Gauge", recorder.gauge)
    monkeypatch.setattr(metrics, "Counter", recorder.counter)
    monkeypatch.setattr(driver, "runtime_sinks", lambda config: [*runtime_sinks(config), witness])
    sampled = [*METHODS["parablock-sampled"], "workers.num=2", "evaluation.every=4"]
    summary = run_tiny(tmp_path / "run", sampled)
    told = rows(tmp_path / "run" / "metrics.jsonl")
    last = told[-1]
    assert recorder.values == {
        "parablock_rounds": 8,
        "parablock_rounds_done": 8,
        "parablock_loss": last["loss"],
        "parablock_round_seconds": last["seconds"],
        "parablock_compute_seconds": last["compute_s"],
        "parablock_exchange_seconds": last["upload_s"] + last["download_s"],
        "parablock_wait_seconds": last["wait_s"],
        "parablock_overlap_efficiency": summary["overlap_efficiency"],
    }
    assert summary["bytes_catch_up"] > 0
    assert recorder.totals == {
        "parablock_clients_done": sum(row["num_participants"] for row in told),
        "parablock_upload_bytes": summary["bytes_up"],
        "parablock_download_bytes": summary["bytes_down"],
        "parablock_catch_up_bytes": summary["bytes_catch_up"],
    }
    assert recorder.tags == {(("run", "quickstart"), ("method", "parablock"))}
    assert {actor["name"] for actor in witness.actors} == {"server", "worker-0", "worker-1", "evaluator"}
    [namespace] = {actor["namespace"] for actor in witness.actors}
    assert re.fullmatch(r"quickstart-[0-9a-f]{8}", namespace)  # another run's server is in another


def test_without_ray_there_are_no_metrics() -> None:
    assert runtime_sinks(load_config(QUICKSTART, ["runtime=serial"])) == []


def test_the_dashboard_of_grafana_shows_every_metric_by_its_name() -> None:
    dashboard = json.loads((MONITORING / "grafana.json").read_text("utf-8"))
    asked = {name for panel in dashboard["panels"] for target in panel["targets"] for name in names_in(target["expr"])}
    assert asked == {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in metrics.OF_SPANS}
    assert [panel["id"] for panel in dashboard["panels"]] == list(range(1, len(dashboard["panels"]) + 1))
    assert all(variable["name"] in json.dumps(dashboard["panels"]) for variable in dashboard["templating"]["list"])


def names_in(expression: str) -> list[str]:
    return re.findall(r"ray_[a-z_]+", expression)


def test_prometheus_reads_the_list_that_ray_writes() -> None:
    [scraped] = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scraped["file_sd_configs"] == [
        {"files": [f"/tmp/ray/{ray._private.ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}
    ]
