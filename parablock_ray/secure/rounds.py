"""What the parties of one secure round agree on before it starts."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from functools import cached_property

from parablock_ray.errors import UserError
from parablock_ray.secure.fixed_point import FixedPoint
from parablock_ray.secure.messages import SERVER

MAX_CLIENTS = 4096  # of one round; every client's messages grow with it


@dataclass(frozen=True)
class SecureRound:
    """One attempt at one round. A round that is tried again is another attempt, with other keys.

    `clients`: the cohort, ascending. `threshold`: how many must be left at the end. `bounds`: the chunks of the vector,
    as (start, end). Raises UserError for what cannot be done.
    """

    run: str
    round: int
    attempt: int
    clients: tuple[int, ...]
    threshold: int
    bounds: tuple[tuple[int, int], ...]
    encoding: FixedPoint

    def __post_init__(self) -> None:
        assert self.clients == tuple(sorted(set(self.clients)))
        assert 0 <= self.clients[0] <= self.clients[-1] < SERVER
        assert self.bounds[0][0] == 0
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(self.bounds))
        num_clients = len(self.clients)
        if not 2 <= num_clients <= MAX_CLIENTS:
            raise UserError(f"secure aggregation: a cohort of {num_clients}, allowed are 2 to {MAX_CLIENTS} clients")
        if not num_clients / 2 < self.threshold <= num_clients:
            # With half of them or fewer, a server could have two groups answer for two sets of survivors.
            raise UserError(
                f"secure aggregation: a threshold of {self.threshold} for {num_clients} clients, allowed are "
                f"{num_clients // 2 + 1} to {num_clients}: more than half"
            )
        self.encoding.require_room(num_clients)

    @property
    def num_params(self) -> int:
        """Elements of the vector."""
        return self.bounds[-1][1]

    @property
    def chunk_words(self) -> tuple[int, ...]:
        """Words of each chunk. The last one has one more: the client's weight, so that the sum of the weights is as
        secret as the sum of the vectors, and as exact."""
        sizes = [end - start for start, end in self.bounds]
        return (*sizes[:-1], sizes[-1] + 1)

    @cached_property
    def session(self) -> bytes:
        """16 bytes in every message: a digest of all of the above, so who disagrees on any of it is refused."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).digest()[:16]

    def x_of(self, client: int) -> int:
        """Where a client's shares lie on the polynomials."""
        return self.clients.index(client) + 1


def threshold_for(num_clients: int, tolerated: float) -> int:
    """The threshold with which this fraction of a cohort may drop out. Raises UserError where that is half or more."""
    if not 0 <= tolerated < 0.5:
        raise UserError(f"secure aggregation: a tolerated fraction of {tolerated}, allowed is 0 to under 0.5")
    return num_clients - int(tolerated * num_clients)
