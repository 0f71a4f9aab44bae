"""FedAvg by this package: `python ours.py FOLDER`. See shared.py.

The package's own driver loop and Ray actors, as `parablock run` has them, with an engine whose step is the shared
training function.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared import job, new_optimizer, train
from torch import Tensor, nn
from torch.nn import Parameter

from parablock_ray.config import Config
from parablock_ray.tracking.events import Committed

sys.path.insert(0, str(Path(__file__).parents[1]))
from rounds import started


@dataclass
class SharedEngine:
    """Trains with the shared function."""

    folder: Path
    model: nn.Module
    parameters: Sequence[Parameter] = ()

    def begin(self, parameters: Sequence[Parameter], lr: float) -> None:
        self.parameters = parameters
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.optimizer = new_optimizer(parameters, lr)

    def step(self, batch: Mapping[str, Tensor]) -> float:
        return train(self.folder, self.model, self.optimizer, batch)

    def end(self) -> list[Tensor]:
        del self.optimizer
        return [parameter.detach() for parameter in self.parameters]


@dataclass(frozen=True)
class SharedEngines:
    """Makes them."""

    folder: Path

    def __call__(self, model: nn.Module, config: Config) -> SharedEngine:
        return SharedEngine(self.folder, model)


def config_of(folder: Path, engine: str) -> Config:
    """FedAvg as the other side has it."""
    asked = job(folder)
    return Config.model_validate(
        {
            "name": "peer",
            "out": str(folder / f"out-{engine}"),
            "model": {"name": str(folder / "model")},
            "data": {
                "source": str(folder / "data.jsonl"),
                "split": {"name": "natural"},
                "num_eval": asked["num_eval"],
                "max_length": asked["max_length"],
            },
            "clients": {"num": asked["num_clients"], "per_round": asked["per_round"]},
            "workers": {"num": asked["num_workers"], "threads": 1},
            "method": {
                "name": "fedavg",
                "rounds": asked["num_rounds"],
                "local_steps": 1,
                "batch_size": asked["batch_size"],
                "lr": asked["lr"],
            },
            "engine": {"name": engine},
            "tracking": {"wandb": "off"},
        }
    )


def timed_rounds(folder: Path) -> list[float]:
    """When the first round began, and when each ended."""
    with started(config_of(folder, "torch"), SharedEngines(folder)) as run:
        start_s = time.time()
        events, _ = run.rounds([])
    return [start_s, *(start_s + event.time_s for event in events if isinstance(event, Committed))]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "rounds.json").write_text(json.dumps(timed_rounds(folder)))
