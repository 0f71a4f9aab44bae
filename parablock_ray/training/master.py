"""The master model: fp32, on the server. Takes uploads, is judged, is written out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from parablock_ray.algorithms.base import Commit, Publication, RoundPlan, Visit
from parablock_ray.algorithms.methods import make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.checkpoint import Checkpoint
from parablock_ray.config import Config
from parablock_ray.participation import require_enough
from parablock_ray.tracking.events import Dropped
from parablock_ray.training.adapters import ADAPTER_FOLDER, save_adapters
from parablock_ray.training.checkpoints import CheckpointWriter, restored
from parablock_ray.training.data import FederatedData
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.model import load_model, load_tokenizer, save_model, weights_sha256


class Master:
    """The server without its process. `server` is the method's half; it writes the parameters of this model."""

    def __init__(self, config: Config, population: Population, data: FederatedData, run_folder: Path) -> None:
        self._config = config
        self._data = data
        self._model = load_model(config.model.name, "float32", config.seed)
        self._model.eval()
        self._tokenizer = load_tokenizer(config.model.name)  # now: a hub may be out of reach when the run is over
        self._parameters = dict(self._model.named_parameters())
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        cut_through = config.network.exchange == "cut_through"
        self._wire = Wire.of(config.network)
        self.server = make_server(
            config.method, population, self._parameters, self._wire, cut_through, config.server.rule
        )
        self.checkpoints = CheckpointWriter(run_folder, config)
        self._num_left: dict[int, int] = {}  # open round → clients in it

    def open(self, plan: RoundPlan) -> None:
        """`server.open`, counting heads."""
        self._num_left[plan.round] = len(plan.visits)
        self.server.open(plan)

    def receive(self, round: int, client: int, chunk: int, values: Tensor) -> Iterator[Publication | Commit]:
        """`server.receive`, with what checkpoints take of it. To be iterated to its end; `values` are kept."""
        self.checkpoints.upload(round, client, chunk, values)
        yield from self._noted(self.server.receive(round, client, chunk, values))

    def drop(self, dropped: Dropped) -> Iterator[Publication | Commit]:
        """`server.drop`, likewise. Raises RunFailed where too few are left."""
        self._num_left[dropped.round] -= 1
        require_enough(self._num_left[dropped.round], self._config.clients.min_participants, dropped)
        yield from self._noted(self.server.drop(dropped.round, dropped.client))

    def _noted(self, made_public: Iterator[Publication | Commit]) -> Iterator[Publication | Commit]:
        for made in made_public:
            yield made  # first: nobody shall wait for a copy
            if isinstance(made, Commit):
                del self._num_left[made.plan.round]
                self.checkpoints.committed(made.plan.round, self.server.state)

    def restore(self, saved: Checkpoint, plans: Sequence[RoundPlan]) -> list[tuple[RoundPlan, Visit, Tensor]]:
        """On a new master: go on from a checkpoint, where `plans` are of all rounds up to its own.

        Returns the uploads that are pending at the clients, in round order.
        """
        found = restored(saved, self._config.method.staleness)
        self.checkpoints.resume_after(saved.round)
        if found.state is not None:
            self.server.restore(plans[: found.num_rounds], found.state)
        pending = [
            (plan, visit, found.uploads[plan.round, visit.client])
            for plan in plans[found.num_rounds :]
            for visit in plan.visits
        ]
        for plan in plans[found.num_rounds :]:
            self.open(plan)
        for plan, visit, upload in pending:
            for chunk, (start, end) in enumerate(self._wire.bounds(upload.numel())):
                for _ in self.receive(plan.round, visit.client, chunk, upload[start:end]):
                    pass  # all of it was published before
        return pending

    def evaluate(self) -> float:
        """Mean loss over the answer tokens of the held-out examples."""
        self.server.settle()
        return held_out_loss(self._model, self._data.eval, self._config.method.batch_size)

    def weights(self) -> Mapping[str, Tensor]:
        """The parameters by name, fp32, tied ones once, as of the last commit; the next one writes into them."""
        self.server.settle()
        return self._parameters

    def export(self, folder: Path) -> str:
        """Write model and tokenizer as an ordinary HF folder, and what of adapters is beyond the initial model to
        `adapter/` beside it (PEFT). Returns the sha256 of the weights."""
        self.server.settle()
        digest = weights_sha256(self._parameters.items())
        save_model(self._model, self._tokenizer, folder)
        adapters = self.server.adapters()
        if adapters:
            save_adapters(adapters, self._config.model.name, digest, folder.with_name(ADAPTER_FOLDER))
        return digest
