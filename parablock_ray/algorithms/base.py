"""What a method is made of: a schedule that plans rounds, a server half and a client half that carry them out.

The runtimes know these protocols and no method by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True)
class Visit:
    """One client's part in one round.

    `variant`: which of a round's publications it downloads, where they differ between clients (by LoRA rank); 0
    where there is one for all.
    """

    client: int
    num_examples: int  # n_i: its weight in the aggregate, before normalisation
    share: float  # planned w_i = n_i / Σ n_j over the cohort (what the `eager` correction uses)
    variant: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """One round: who trains which block, from which version of the model, how.

    `reads` is the last round whose aggregate a client may use: exactly t − 1 − staleness, negative where there
    is none yet. `visits` stand in fold order: n_i descending, ties by client id.
    """

    round: int
    block: int
    reads: int
    visits: tuple[Visit, ...]
    lr: float


class Method(Protocol):
    """Planning as a pure function of (config, seed, round): the driver asks, the runtime obeys."""

    @property
    def num_rounds(self) -> int: ...

    @property
    def staleness(self) -> int: ...

    def plan(self, round: int) -> RoundPlan:
        """The plan of round `round` (0-based)."""
        ...


@dataclass(frozen=True)
class Publication:
    """One chunk of what round `round` brings to the clients of `variant`: flat, in the wire dtype.

    Chunks of a variant come in order, `is_last` marks its last one. Provisional until the commit.
    """

    round: int
    variant: int
    chunk: int
    values: Tensor
    is_last: bool


@dataclass(frozen=True)
class Commit:
    """Round `round` is now part of the model. `update_norm` is the L2 norm of G_t."""

    plan: RoundPlan
    update_norm: float


@dataclass(frozen=True)
class Update:
    """What brings a client's copy forward: all chunks of a round's publication, or as much as it needs of them."""

    round: int
    block: int
    values: Tensor  # flat, wire dtype


class Server(Protocol):
    """The server's half: the global model, and the rounds on their way into it."""

    def open(self, plan: RoundPlan) -> None:
        """Expect the uploads of this round. Must come before the first of them; rounds in order."""
        ...

    def receive(self, round: int, client: int, chunk: int, values: Tensor) -> Iterator[Publication | Commit]:
        """Take one chunk of one client's upload (wire dtype); what this makes public, in order.

        To be iterated to its end: a chunk is made when it is asked for, so that it can go out before the next.
        """
        ...

    def updates(self, after: int, up_to: int, variant: int) -> Sequence[Update]:
        """What leads from x^{(≤ after)} to x^{(≤ up_to)}, in the order to apply; `up_to` is committed."""
        ...

    def catch_up_params(self, client: int, round: int) -> int:
        """How many parameters the client must download before this round, since it missed some."""
        ...


class Replica(Protocol):
    """The client's half: the model as one worker holds it, dressed for one of its clients at a time."""

    def apply(self, update: Update) -> None:
        """A committed update; in order, and never in the middle of a visit."""
        ...

    def forget(self, reads: int) -> None:
        """Drop what is no longer pending once the aggregates up to round `reads` are in."""
        ...

    def start(self, plan: RoundPlan, visit: Visit) -> Sequence[Parameter]:
        """Dress the model as what the client starts from; the parameters to train."""
        ...

    def finish(self, trained: Tensor) -> Tensor:
        """The upload (flat, wire dtype, CPU) of the visit under way, whose parameters are now `trained` (flat, fp32,
        used up). The model is undressed again."""
        ...

    def undress(self) -> None:
        """Restore the committed values, whatever a visit did."""
        ...
