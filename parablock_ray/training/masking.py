"""Secure aggregation in a run: both halves of `secure/` for the rounds that are under way, and tensors on either end.

    MaskedUploads   keys · share · take_shares · mask · reveal      the clients of one worker
    SecureSums      take_keys · take_shares · add · survivors · take_reveals      the server's

How the messages between them travel is the runtime's. A client's secrets are in its worker, and go with its round.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parablock_ray.algorithms.base import RoundPlan, Sent
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.errors import RunFailed
from parablock_ray.secure.client import SecureClient
from parablock_ray.secure.fixed_point import FixedPoint
from parablock_ray.secure.messages import Refused
from parablock_ray.secure.rounds import SecureRound
from parablock_ray.secure.server import SecureServer
from parablock_ray.secure_terms import fixed_point, threshold
from parablock_ray.sizes import trained_layout
from parablock_ray.training.model import model_shapes

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecureTerms:
    """What all parties of a run agree on. `attempt`: another one whenever processes start, so that a round that is done
    again is another session; `bounds`: by block, the chunks of an upload."""

    run: str
    attempt: int
    threshold: int
    encoding: FixedPoint
    bounds: Sequence[tuple[tuple[int, int], ...]]
    population: Population

    def round_of(self, plan: RoundPlan) -> SecureRound:
        """Raises RunFailed where the plan has too few clients left."""
        clients = tuple(sorted(visit.client for visit in plan.visits))
        if len(clients) < self.threshold:
            raise RunFailed(
                f"round {plan.round}: {len(clients)} client(s) left; secure aggregation unmasks no sum of fewer than "
                f"{self.threshold} (secure_aggregation.tolerated_dropouts)"
            )
        bounds = self.bounds[plan.block]
        return SecureRound(self.run, plan.round, self.attempt, clients, self.threshold, bounds, self.encoding)

    def weight(self, round: int, client: int) -> int:
        """n_i, which no plan tells: only the client itself asks for it. In private all weigh the same."""
        return 1 if self.population.is_private else self.population.num_examples_at(round, client)


def secure_terms(config: Config, population: Population, attempt: int) -> SecureTerms:
    """Those of a run with `secure_aggregation.enabled`. Raises UserError."""
    wire, layout = Wire.of_uploads(config), trained_layout(config, model_shapes(config.model.name))
    return SecureTerms(
        config.name,
        attempt,
        threshold(config),
        fixed_point(config, max(population.num_examples)),
        [tuple(wire.bounds(block.num_params)) for block in layout.blocks],
        population,
    )


class MaskedUploads:
    """The clients' half of every round under way, of the clients that one worker hosts."""

    def __init__(self, terms: SecureTerms) -> None:
        self._terms = terms
        self._clients: dict[int, dict[int, SecureClient]] = {}  # by round

    def keys(self, plan: RoundPlan, clients: Collection[int]) -> dict[int, bytes]:
        """New keys of these clients for this round; by client, for the server."""
        round, weight = self._terms.round_of(plan), self._terms.weight
        hosted = {client: SecureClient(round, client, weight(plan.round, client)) for client in clients}
        self._clients[plan.round] = hosted
        return {client: each.keys() for client, each in hosted.items()}

    def share(self, round: int, key_lists: Mapping[int, bytes]) -> dict[int, bytes]:
        """Their seeds, shared; for the server. Raises Refused."""
        return {client: self._clients[round][client].share(message) for client, message in key_lists.items()}

    def take_shares(self, round: int, share_lists: Mapping[int, bytes]) -> None:
        """What others have shared with them: from now on they can mask. Raises Refused."""
        for client, message in share_lists.items():
            self._clients[round][client].take_shares(message)

    def mask(self, round: int, client: int, chunks: Sequence[Tensor]) -> list[Tensor]:
        """A client's upload (flat, any float dtype, in the chunks of `Wire.of_uploads`) as it leaves the client: in
        integers of that wire. Once in a round."""
        secure = self._clients[round][client]
        words = [secure.masked(chunk.to(torch.float32).numpy()) for chunk in chunks]
        if secure.num_clipped:
            _logger.warning(
                "client %d, round %d: %d of %d numbers were cut to secure_aggregation.clip = %g",
                *(client, round, secure.num_clipped, sum(map(len, chunks)), self._terms.encoding.clip),
            )
        return [torch.from_numpy(self._terms.encoding.as_signed(each)) for each in words]

    def reveal(self, round: int, survivors: Mapping[int, bytes]) -> dict[int, bytes]:
        """What those of them who are in the sum give the server to unmask it. The round is over for all of them. Raises
        Refused."""
        hosted = self._clients.pop(round)
        return {client: hosted[client].reveal(message) for client, message in survivors.items()}


@dataclass(frozen=True)
class PlainSum:
    """Σ w_i Δ_i = `steps` / `scale` (flat integers), exact, and Σ w_i."""

    steps: Tensor
    scale: float
    sum_of_weights: int


@dataclass
class _Open:
    server: SecureServer
    lost: set[int] = field(default_factory=set)  # whose vectors will not come
    is_agreed: bool = False  # all have their shares
    is_fixed: bool = False  # whose vectors are in the sum


class SecureSums:
    """The server's half of every round that is open."""

    def __init__(self, terms: SecureTerms) -> None:
        self._terms = terms
        self._open: dict[int, _Open] = {}

    def open(self, plan: RoundPlan) -> None:
        """Raises RunFailed where the plan has too few clients left."""
        self._open[plan.round] = _Open(SecureServer(self._terms.round_of(plan)))

    def take_keys(self, round: int, messages: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """Clients' keys; once all of them are here, what every client is told, until then nothing. Raises Refused."""
        server = self._open[round].server
        for client, message in messages.items():
            server.take_keys(client, message)
        return {} if server.missing() else server.key_lists()

    def take_shares(self, round: int, messages: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """Clients' sealed shares, likewise."""
        current = self._open[round]
        for client, message in messages.items():
            current.server.take_shares(client, message)
        if current.server.missing():
            return {}
        current.is_agreed = True
        return current.server.share_lists()

    def add(self, sent: Sent, values: Tensor) -> None:
        """One chunk of a masked vector, which is kept. Raises Refused."""
        current = self._open.get(sent.round)
        if current is None:
            raise Refused(f"secure aggregation: round {sent.round}, of which client {sent.client} sends, is not open")
        current.server.add(sent.client, sent.chunk, values.numpy().view(self._terms.encoding.dtype))

    def lose(self, round: int, client: int) -> None:
        """This client's vector will not come."""
        self._open[round].lost.add(client)

    def survivors(self, round: int) -> Mapping[int, bytes]:
        """What those are told whose vectors are in the sum: once, when all are here but of those lost; else nothing.

        Raises RunFailed where they are too few.
        """
        current = self._open.get(round)
        if current is None or not current.is_agreed or current.is_fixed or current.server.missing() - current.lost:
            return {}
        current.is_fixed = True
        return current.server.survivors()

    def take_reveals(self, round: int, messages: Mapping[int, bytes]) -> PlainSum | None:
        """Survivors' shares; the sum, once all of them are here. Raises Refused, and RunFailed for a wrong share."""
        current = self._open[round]
        for client, message in messages.items():
            current.server.take_reveal(client, message)
        if current.server.missing():
            return None
        total = current.server.unmask()
        del self._open[round]
        return PlainSum(torch.from_numpy(total.sums), self._terms.encoding.scale, total.weight)
