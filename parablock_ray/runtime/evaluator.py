"""The evaluator's process: a thin shell around `Evaluator`, which judges while the others train."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ray
import torch

from parablock_ray.evaluation.evaluator import Evaluator
from parablock_ray.runtime.base import RunSetup
from parablock_ray.runtime.exchange import from_payload
from parablock_ray.runtime.memory import peak_rss_bytes
from parablock_ray.tracking.evaluations import Evaluated


class EvaluatorActor:
    """Judges snapshots one after the other, in a thread of its own."""

    def __init__(self, setup: RunSetup) -> None:
        threads = setup.config.workers.threads
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._setup = setup

    async def load(self) -> None:
        """Load model and tasks. Before all else; not in `__init__`, see ClientActor.load."""
        setup, loop = self._setup, asyncio.get_running_loop()
        self._evaluator = await loop.run_in_executor(self._thread, lambda: Evaluator(setup.config, setup.data))

    async def judge(self, round: int, snapshot: list[ray.ObjectRef]) -> Evaluated:
        """`snapshot`: what `ServerActor.snapshot` gives."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._judge, round, snapshot))

    async def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()

    def _judge(self, round: int, snapshot: list[ray.ObjectRef]) -> Evaluated:
        """In the thread, so that no snapshot is fetched before it is its turn."""
        payloads = ray.get(snapshot[0])
        return self._evaluator.evaluate(
            round, {name: from_payload(payload, torch.float32) for name, payload in payloads.items()}
        )
