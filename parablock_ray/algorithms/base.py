"""What a method is made of: a schedule that plans rounds, a server half and a client half that carry them out.

The runtimes know these protocols and no method by name.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from parablock_ray.algorithms.lora import Adapter


@dataclass(frozen=True)
class Visit:
    """One client's part in one round.

    `variant`: which of a round's publications it downloads, where they differ between clients (by LoRA rank); 0
    where there is one for all.
    """

    client: int
    num_examples: int  # n_i: what it holds in this round
    weight: int  # in the aggregate, before normalisation: n_i, or how often it was drawn where it is drawn by size
    share: float  # planned w_i = weight / Σ of them over the cohort (what the `eager` correction uses)
    variant: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """One round: who trains which block, from which version of the model, how.

    `reads` is the last round whose aggregate a client may use: exactly t − 1 − staleness, negative where there
    is none yet. `visits` stand in fold order: n_i descending, ties by client id. `refused`: clients of these visits
    of whose updates it is known that they are refused; they train and send all the same. `clip`: the norm to which the
    deltas of a private round are cut; None: the round is not private.
    """

    round: int
    block: int
    reads: int
    visits: tuple[Visit, ...]
    lr: float
    refused: frozenset[int] = frozenset()
    clip: float | None = None

    def without(self, clients: Collection[int]) -> "RoundPlan":
        """The round with these clients left out; the shares stay those of the cohort that was planned."""
        return replace(self, visits=tuple(visit for visit in self.visits if visit.client not in clients))

    def without_sizes(self) -> "RoundPlan":
        """The round without what would tell anybody's n_i: every visit counts 1, and they stand by client."""
        visits = sorted(self.visits, key=lambda visit: visit.client)
        told = tuple(replace(each, num_examples=0, weight=1, share=1 / len(visits)) for each in visits)
        return replace(self, visits=told)

    def in_order(self, clients: Collection[int]) -> tuple[int, ...]:
        """These clients of the round, in fold order."""
        return tuple(visit.client for visit in self.visits if visit.client in clients)


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
class Sent:
    """What stands on one chunk of an upload: who sent it, of which round and block."""

    round: int
    block: int
    client: int
    chunk: int


@dataclass(frozen=True)
class Publication:
    """One chunk of what round `round` brings to the clients of `variant`: flat, in the wire dtype, and for reading
    only: it may still be on its way out when the next one is made.

    Chunks of a variant come in order, `is_last` marks its last one. Provisional until the commit: where an update is
    refused some of whose chunks were in them, they come again from the first one on and take the others' place.
    """

    round: int
    variant: int
    chunk: int
    values: Tensor
    is_last: bool
    ranks: tuple[int, ...] = ()  # of LoRA: how to take the vector apart


@dataclass(frozen=True)
class ModuleRank:
    """What a rule that cuts kept of one adapted weight: singular values descend, energy is a share of their squares."""

    module: str
    rank: int
    kept_energy: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True)
class Commit:
    """Round `round` is now part of the model. `update_norm` is the L2 norm of G_t.

    `plan`: without those who have no part in it. `refused`, in fold order: those of them who had sent something.

    `uploads`: client → what it sent, flat, in the wire dtype; of methods that are told to keep them.
    `sum_of_weights`: Σ n_i, where the sum told it and not the plan.
    `unclipped`: of a private round whose clip moves, the noised share of clients that were not cut.
    """

    plan: RoundPlan
    update_norm: float
    refused: tuple[int, ...] = ()
    module_ranks: tuple[ModuleRank, ...] = ()
    uploads: Mapping[int, Tensor] = field(default_factory=dict)
    sum_of_weights: int | None = None
    unclipped: float | None = None


@dataclass(frozen=True)
class LiveModel:
    """A worker's model as a replica sees it.

    `parameters` by name, written in place; `exact`: the fp32 values, on the CPU, of those that the model's dtype
    rounds. With adapters the weights keep the names that they had without, and `activate(rank)` turns on those of one
    rank.
    """

    parameters: Mapping[str, Parameter]
    exact: Mapping[str, Tensor]
    activate: Callable[[int], None]


@dataclass(frozen=True)
class Update:
    """What brings a client's copy forward: all chunks of a round's publication, or as much as it needs of them.

    `start`: where the chunks begin in the whole vector; more than 0 only of a later part (`Replica.takes_parts`).
    `holds_weights`: of LoRA in a resumed run, where what was merged one by one is not kept: the adapted weights
    themselves, flat, in fp32.
    """

    round: int
    block: int
    variant: int
    chunks: tuple[Tensor, ...]  # flat, wire dtype, one after the other; read only
    ranks: tuple[int, ...] = ()  # as those of the publication
    holds_weights: bool = False
    start: int = 0

    @property
    def values(self) -> Tensor:
        """As one vector: a copy, unless there is one chunk."""
        return self.chunks[0] if len(self.chunks) == 1 else torch.cat(self.chunks)


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

    def receive_sum(
        self, round: int, steps: Tensor, scale: float, sum_of_weights: int
    ) -> Iterator[Publication | Commit]:
        """In place of all uploads, over those who were not dropped: Σ w_i Δ_i = `steps` / `scale` (flat integers), and
        Σ w_i. Of methods whose server needs no more. What this makes public, as above."""
        ...

    def drop(self, round: int, client: int) -> Iterator[Publication | Commit]:
        """This client, which has sent nothing of this round, will not; others are left. What this makes public, as
        above."""
        ...

    def refuse(self, round: int, client: int) -> Iterator[Publication | Commit]:
        """What this client sent of this round, all of it or some, has no part in it; others are left. It downloads what
        the round brings like them. What this makes public, as above."""
        ...

    def upload_params(self, round: int, client: int) -> int:
        """How many parameters the upload of this client has in this round, which is open."""
        ...

    def updates(self, after: int, up_to: int, variant: int) -> Sequence[Update]:
        """What leads from x^{(≤ after)} to x^{(≤ up_to)}, in the order to apply; `up_to` is committed."""
        ...

    def catch_up_params(self, client: int, round: int) -> int:
        """How many parameters the client must download before this round, since it missed some."""
        ...

    def forget(self, up_to: int) -> None:
        """Every reader has taken in the rounds up to `up_to`: none will ask what leads there."""
        ...

    def settle(self) -> None:
        """Write the global model as it now stands into the master's parameters, if not there already."""
        ...

    def adapters(self) -> Mapping[str, Adapter]:
        """By module, what the global model is beyond the initial one, as scaling · B A; empty where it is anything
        else besides."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy of what the committed rounds have made of the initial model. To be asked right after a commit."""
        ...

    def restore(self, plans: Sequence[RoundPlan], state: Mapping[str, Tensor]) -> None:
        """On a new server around the initial model: become the one that gave `state` after the rounds of `plans`."""
        ...


class Replica(Protocol):
    """The client's half: the model as one worker holds it, dressed for one of its clients at a time.

    `takes_parts`: whether `apply` takes an update in parts, each as soon as it is published. Before the last one
    nothing is final: parts may come again with other values, and no visit starts.
    """

    takes_parts: bool

    def apply(self, update: Update) -> None:
        """An update that is committed, or a part; in order, and never in the middle of a visit."""
        ...

    def forget(self, reads: int) -> None:
        """Drop what is no longer pending once the aggregates up to round `reads` are in."""
        ...

    def start(self, plan: RoundPlan, visit: Visit) -> Sequence[Parameter]:
        """Dress the model as what the client starts from; the parameters to train."""
        ...

    def finish(self, trained: Sequence[Tensor], into: Iterable[Tensor]) -> Iterator[Tensor]:
        """The upload of the visit under way, whose parameters are now `trained`: themselves, which take their committed
        values again, or in fp32. In the chunks `into` (flat, wire dtype, CPU), each in turn when it is made, so that
        one memory may serve for all of them. To be iterated to its end: then the model is undressed. With staleness,
        what is sent must then be told to `remember`."""
        ...

    def undress(self) -> None:
        """Restore the committed values, whatever a visit did."""
        ...

    def remember(self, plan: RoundPlan, visit: Visit, upload: Tensor) -> None:
        """What this client sent in this round is pending; rounds in order."""
        ...
