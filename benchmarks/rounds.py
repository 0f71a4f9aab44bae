"""A run's rounds as the driver makes them, with an engine of the benchmark's own: everybody takes part, and nothing is
written but what sinks write."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parablock_ray.algorithms.base import Method
from parablock_ray.algorithms.methods import make_method
from parablock_ray.checkpointing import Completer
from parablock_ray.config import Config
from parablock_ray.deadlines import nobody
from parablock_ray.driver import claimed, prepare, run_rounds
from parablock_ray.participation import Participation
from parablock_ray.privacy import Privacy
from parablock_ray.runtime.base import RunSetup
from parablock_ray.runtime.cluster import RayRuntime
from parablock_ray.tracking.events import Event
from parablock_ray.tracking.rounds import RoundBook
from parablock_ray.tracking.sinks import Sink
from parablock_ray.training.engine import EngineMaker


@dataclass(frozen=True)
class Started:
    """A run whose actors are up, before its first round."""

    config: Config
    method: Method
    runtime: RayRuntime

    def rounds(self, sinks: Sequence[Sink]) -> tuple[list[Event], list[dict[str, Any]]]:
        """All of them: the events, and the rows of `metrics.jsonl`."""
        # No checkpoint is due.
        completer = Completer(self.runtime.complete_checkpoint, self.config, loss_before=0.0, num_done=0)
        everybody = Participation(min_participants=1, late=nobody, known=[])
        book = RoundBook(self.method.num_rounds)
        return run_rounds(
            self.method, everybody, Privacy(self.config, resumes=False), self.runtime, book, sinks, completer, told=[]
        )


@contextmanager
def started(config: Config, make_engine: EngineMaker) -> Iterator[Started]:
    """On the cluster that this process has joined; takes the config's folder, and ends the actors."""
    assert not config.privacy.is_on, "its processes would have to be told the noise"
    assert not config.secure_aggregation.enabled, "its plans would have to be told without sizes"
    prepared = prepare(config)
    method = make_method(config.method, prepared.population)
    runtime = RayRuntime(RunSetup(config, prepared.population, prepared.data, make_engine))
    with claimed(Path(config.out), config), closing(runtime):
        runtime.start()
        yield Started(config, method, runtime)
