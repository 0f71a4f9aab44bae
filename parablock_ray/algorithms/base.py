"""What a method is: a plan for every round, made from numbers alone."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Visit:
    """One client's part in one round."""

    client: int
    num_examples: int  # n_i: its weight in the aggregate, before normalisation
    share: float  # planned w_i = n_i / Σ n_j over the cohort (what the `eager` correction uses)
    catch_up: tuple[int, ...]  # blocks it must download first, since it missed the rounds that changed them
    joins_late: bool  # its first round, after the first round of the run: it downloads the whole model


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

    @property
    def correction(self) -> str: ...

    def plan(self, round: int) -> RoundPlan:
        """The plan of round `round` (0-based)."""
        ...


@dataclass(frozen=True)
class MethodTraits:
    """What the two halves of the protocol, on client and server, need to know of a method."""

    staleness: int
    correction: str

    @staticmethod
    def of(method: Method) -> "MethodTraits":
        return MethodTraits(method.staleness, method.correction)
