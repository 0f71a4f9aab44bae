"""Real runs on a model of a chosen size whose training is a fixed amount of work: it tells what the runtime costs."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from rounds import started
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import LlamaConfig, LlamaForCausalLM

from parablock_ray.algorithms.base import Method
from parablock_ray.config import Config
from parablock_ray.driver import prepare
from parablock_ray.network.timeline import RoundLoad
from parablock_ray.planning.plan import plan
from parablock_ray.planning.scenario import Scenario
from parablock_ray.pricing import Pricing, by_round
from parablock_ray.runtime.connection import FREE_OBJECTS_PERIOD_MS
from parablock_ray.tracking.events import Event, Span
from parablock_ray.training.engine import Batch, EngineMaker
from parablock_ray.training.model import load_tokenizer, model_shapes

NUM_BLOCKS = 4
# Ray's default of 15 puts the workers behind whatever else is on the machine.
_SYSTEM = {"worker_niceness": 0, "free_objects_period_milliseconds": FREE_OBJECTS_PERIOD_MS}
_SIZE = 256  # a product of two such matrices takes a fraction of a millisecond and stays in the cache


@contextmanager
def own_cluster() -> Iterator[None]:
    """A cluster of two CPUs on this machine, for as long as this lasts."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config=_SYSTEM,
    )
    try:
        yield
    finally:
        ray.shutdown()


class FixedWorkEngine:
    """An engine whose steps are a fixed piece of work: the time of training without its noise, and a real delta."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._parameters: Sequence[Parameter] = ()

    def begin(self, parameters: Sequence[Parameter], lr: float) -> None:
        self._parameters = parameters

    def step(self, batch: Batch) -> float:
        self._work()
        return 1.0

    def end(self) -> list[Tensor]:
        return [parameter.detach() + 1e-4 for parameter in self._parameters]


@dataclass(frozen=True)
class FixedWork:
    """Makes engines that do `work` at every step."""

    work: Callable[[], None]

    def __call__(self, model: nn.Module, config: Config) -> FixedWorkEngine:
        return FixedWorkEngine(self.work)


def busy_for(seconds: float) -> FixedWork:
    """As many matrix products as take `seconds` here: like training, native code in one thread without the GIL."""
    return FixedWork(partial(burn, round(products_per_second() * seconds)))


def asleep_for(seconds: float) -> FixedWork:
    """As if the training were on a GPU: the cores are free for the exchange."""
    return FixedWork(partial(time.sleep, seconds))


def burn(num_products: int) -> None:
    """That many products of two matrices, one after the other."""
    factor = torch.eye(_SIZE)
    product = torch.ones(_SIZE, _SIZE)
    other = torch.empty_like(product)
    for _ in range(num_products):
        torch.mm(product, factor, out=other)
        product, other = other, product


def products_per_second(seconds: float = 0.2, num_times: int = 15) -> float:
    """How fast this machine burns on one thread with nothing beside it: the fastest of several samples.

    Not the median: whatever disturbs a sample only ever slows it, and a run's work must not hold a neighbour's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rough = 200 / _seconds_of(200)
        num_products = round(rough * seconds)
        return num_products / min(_seconds_of(num_products) for _ in range(num_times))
    finally:
        torch.set_num_threads(threads)


def _seconds_of(num_products: int) -> float:
    start_s = time.perf_counter()
    burn(num_products)
    return time.perf_counter() - start_s


@dataclass(frozen=True)
class Federation:
    """A model on disk whose blocks are all of `block_bytes` on the wire (fp32), and data that only has to be there."""

    folder: Path
    block_bytes: int

    def config(self, method: Mapping[str, Any], network: Mapping[str, Any], num_clients: int) -> Config:
        """One client to a worker, one local step to a round."""
        return Config.model_validate(
            {
                "name": "benchmark",
                "out": str(self.folder / "out"),
                "model": {"name": str(self.folder)},
                "data": {"source": str(self.folder / "data.jsonl"), "num_eval": 2},
                "clients": {"num": num_clients},
                "workers": {"num": num_clients, "threads": 1},
                "method": {"num_blocks": NUM_BLOCKS, "local_steps": 1, "batch_size": 1, "order": "ascending", **method},
                "network": dict(network),
            }
        )


def make_federation(folder: Path, hidden: int = 512, intermediate: int = 576) -> Federation:
    """A random Llama of `NUM_BLOCKS` layers, one to a block: 7.7 MB each as it is sized here."""
    shape = LlamaConfig(
        vocab_size=len(load_tokenizer("tiny")),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(shape)
    model.save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)
    examples = [{"instruction": f"{i} + {i} = ?", "output": str(2 * i)} for i in range(20)]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(example) for example in examples))
    return Federation(folder, sum(4 * parameter.numel() for parameter in model.model.layers[0].parameters()))


@dataclass(frozen=True)
class Measured:
    """A run that was really made. `step_s`: seconds of a local step by block, just before it, if asked for."""

    seconds: float
    events: list[Event]
    method: Method
    config: Config
    step_s: tuple[float, ...]

    def bound_s(self, compute_s: float | None = None, config: Config | None = None) -> float:
        """The recurrence's makespan: for `compute_s` seconds of training a visit, or as measured; over the links of
        `config`, or the run's own."""
        pricing = Pricing(config or self.config)
        loads = [pricing.load(commit, spans) for commit, spans in by_round(self.events)]
        return pricing.timeline(
            loads if compute_s is None else [_with_compute(load, compute_s) for load in loads]
        ).seconds

    @property
    def compute_s(self) -> float:
        """Mean seconds of a visit's training as it was measured."""
        computes = [e for e in self.events if isinstance(e, Span) and e.phase == "compute"]
        return sum(span.end_s - span.start_s for span in computes) / len(computes)


def _with_compute(load: RoundLoad, compute_s: float) -> RoundLoad:
    return replace(load, visits=tuple(replace(visit, compute_s=compute_s) for visit in load.visits))


def measure(config: Config, make_engine: EngineMaker, num_steps: int = 0) -> Measured:
    """Run the config on the cluster that this process has joined, as the driver would, and time it.

    Before it `num_steps` local steps are timed on every block, as `parablock plan` does.
    """
    with started(config, make_engine) as run:
        step_s = tuple(run.runtime.step_seconds(num_steps)) if num_steps else ()
        events, rows = run.rounds([])
    return Measured(sum(row["seconds"] for row in rows), events, run.method, config, step_s)


def planned_s(run: Measured) -> float:
    """Seconds of the whole run as `parablock plan` would have foretold them, one client to a worker."""
    config = run.config
    scenario = Scenario(
        config, prepare(config).population, model_shapes(config.model.name), config.clients.num, run.step_s
    )
    total_s = plan(scenario, "measured", None).configured.total_s
    assert total_s is not None
    return total_s
