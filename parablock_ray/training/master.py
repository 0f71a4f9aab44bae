"""The master model: fp32, on the server. Takes uploads, is judged, is written out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from parablock_ray.algorithms.base import Commit, Publication, RoundPlan, Sent, Visit
from parablock_ray.algorithms.gate import Gate, Ignored, Passed, Refused
from parablock_ray.algorithms.methods import make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.checkpoint import Checkpoint
from parablock_ray.config import Config
from parablock_ray.participation import require_enough
from parablock_ray.privacy import rule_of
from parablock_ray.tracking.events import Dropped
from parablock_ray.training.adapters import ADAPTER_FOLDER, save_adapters
from parablock_ray.training.checkpoints import CheckpointWriter, restored, unusable
from parablock_ray.training.data import FederatedData
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.masking import SecureSums, secure_terms
from parablock_ray.training.model import load_model, load_tokenizer, save_model, weights_sha256

_logger = logging.getLogger(__name__)

_AS_LOGGED = Refused("as in the log", is_news=False, is_sound=False)


class Master:
    """The server without its process. `server` is the method's half; it writes the parameters of this model. `secure`:
    the rounds under way where single updates are masked, else None."""

    def __init__(
        self, config: Config, population: Population, data: FederatedData, run_folder: Path, attempt: int
    ) -> None:
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
        rule = rule_of(config, run_folder) if config.privacy.is_on else config.server.rule
        self.server = make_server(config.method, population, self._parameters, self._wire, cut_through, rule)
        self.secure = (
            SecureSums(secure_terms(config, population, attempt)) if config.secure_aggregation.enabled else None
        )
        uploads = Wire.of_uploads(config)
        self._gate = Gate(config.server, config.method.staleness, uploads, cut_through, torch.float32)
        self.checkpoints = CheckpointWriter(run_folder, config)
        self._num_left: dict[int, int] = {}  # open round → clients in it

    def open(self, plan: RoundPlan) -> None:
        """`server.open`, counting heads."""
        self._num_left[plan.round] = len(plan.visits) - len(plan.refused)
        if self.secure is not None:
            self.secure.open(plan)
        self.server.open(plan)
        clients = [visit.client for visit in plan.visits]
        self._gate.open(plan, {client: self.server.upload_params(plan.round, client) for client in clients})

    def num_chunks(self, plan: RoundPlan) -> dict[int, int]:
        """By client, of its upload in this round, which is open."""
        return self._gate.num_chunks(plan.round)

    def receive(self, sent: Sent, values: Tensor | None) -> Iterator[Publication | Commit | Dropped]:
        """`server.receive` for what the gate lets pass, with what checkpoints take of it. To be iterated to its end;
        `values` (None: the payload was no vector) are kept. `Dropped` of a client that is refused, before what that
        makes public; raises RunFailed where too few are left."""
        if self.secure is not None:  # of words under masks there is nothing more to check
            assert values is not None, "a worker sends what it has masked"
            self.secure.add(sent, values)
            return
        judged = self._gate.admit(sent, values)
        if isinstance(judged, Ignored):
            if judged.why is not None:
                _logger.warning("ignored: %s", judged.why)
            return
        if isinstance(judged, Passed) or judged.is_sound:
            assert values is not None
            self.checkpoints.upload(sent.round, sent.client, sent.chunk, values)
        else:
            self.checkpoints.discard(sent.round, sent.client)
        if isinstance(judged, Refused):
            yield from self._refuse(sent.round, sent.client, judged)
            return
        for chunk, passed in judged.chunks.items():
            yield from self._noted(self.server.receive(sent.round, sent.client, chunk, passed))

    def take_reveals(self, round: int, messages: Mapping[int, bytes]) -> Iterator[Publication | Commit]:
        """With `secure`, what unmasks a round's sum; `server.receive_sum`, once that is all. To be iterated to its
        end."""
        assert self.secure is not None
        plain = self.secure.take_reveals(round, messages)
        if plain is not None:
            yield from self._noted(self.server.receive_sum(round, plain.steps, plain.scale, plain.sum_of_weights))

    def drop(self, dropped: Dropped) -> Iterator[Publication | Commit]:
        """`server.drop`, likewise. Raises RunFailed where too few are left."""
        self._count_out(dropped)
        if self.secure is not None:
            self.secure.lose(dropped.round, dropped.client)
        self._gate.drop(dropped.round, dropped.client)
        yield from self._noted(self.server.drop(dropped.round, dropped.client))

    def _refuse(self, round: int, client: int, refused: Refused) -> Iterator[Publication | Commit | Dropped]:
        if refused.is_news:
            dropped = Dropped(round, client, "refused", f"client {client}, round {round}: {refused.why}", has_sent=True)
            yield dropped
            self._count_out(dropped)
        yield from self._noted(self.server.refuse(round, client))

    def _count_out(self, dropped: Dropped) -> None:
        self._num_left[dropped.round] -= 1
        require_enough(self._num_left[dropped.round], self._config.clients.min_participants, dropped)

    def _noted(self, made_public: Iterator[Publication | Commit]) -> Iterator[Publication | Commit]:
        for made in made_public:
            yield made  # first: nobody shall wait for a copy
            if isinstance(made, Commit):
                del self._num_left[made.plan.round]
                self._gate.committed(made.plan.round)
                self.checkpoints.committed(made.plan.round, lambda: self.server.state() | self._gate.state())

    def restore(self, saved: Checkpoint, plans: Sequence[RoundPlan]) -> list[tuple[RoundPlan, Visit, Tensor]]:
        """On a new master: go on from a checkpoint, where `plans` are of all rounds up to its own.

        Returns the uploads that are pending at the clients, in round order. Raises UserError where it does not fit.
        """
        found = restored(saved, self._config.method.staleness)
        self.checkpoints.resume_after(saved.round)
        if found.state is not None:
            try:
                self.server.restore(plans[: found.num_rounds], found.state)
                self._gate.restore(found.num_rounds, found.state)
            except (KeyError, ValueError, RuntimeError) as error:  # a vector that is missing, or of another shape
                raise unusable(saved, f"its state is not this model's: {error}") from None
        visits = [(plan, visit) for plan in plans[found.num_rounds :] for visit in plan.visits]
        for plan in plans[found.num_rounds :]:
            self.open(plan)
        pending = []
        for plan, visit in visits:
            upload = found.uploads.get((plan.round, visit.client))
            if upload is None:  # it was refused since it was not sound
                if visit.client not in plan.refused:
                    raise unusable(saved, f"it lacks what client {visit.client} sent in round {plan.round}")
                made = self._refuse(plan.round, visit.client, _AS_LOGGED)
            else:
                self._check_upload(saved, plan, visit, upload)
                pending.append((plan, visit, upload))
                made = self._played_back(plan, visit, upload)
            for _ in made:
                pass  # all of it was published before
        return pending

    def _check_upload(self, saved: Checkpoint, plan: RoundPlan, visit: Visit, upload: Tensor) -> None:
        """Raises UserError where it is not what was sent: the gate let that pass, or knew that it was refused."""
        expected = self.server.upload_params(plan.round, visit.client)
        if upload.dtype != self._wire.dtype or upload.shape != (expected,):
            raise unusable(
                saved,
                f"what client {visit.client} sent in round {plan.round} is {upload.dtype} of shape "
                f"{tuple(upload.shape)} there, and should be {self._wire.dtype} of {expected} numbers",
            )

    def _played_back(self, plan: RoundPlan, visit: Visit, upload: Tensor) -> Iterator[Publication | Commit | Dropped]:
        for chunk, (start, end) in enumerate(self._wire.bounds(upload.numel())):
            yield from self.receive(Sent(plan.round, plan.block, visit.client, chunk), upload[start:end])

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
