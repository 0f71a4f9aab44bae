"""Which worker a client visits in a round. It changes when things happen, and no value."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from parablock_ray.algorithms.base import RoundPlan
from parablock_ray.runtime.base import worker_of
from parablock_ray.tracking.events import Dropped, Event, Span

_NAMED_CLIENTS = 20
_MEASURED_VISITS = 32  # of a worker: the last ones tell how fast it is


@dataclass
class _Stay:
    """The last visit of a client that was handed out: its round, where it is, and whether it is over."""

    round: int
    worker: int
    is_over: bool


class Assignment:
    """Longest processing time first: in fold order, each visit to the worker that would be done with it first.

    All visits of a round are of as many steps, so how long one takes depends on the worker alone: the mean of its last
    visits. Who has a delta pending on a worker, or is not done there, stays. Until a worker was measured everybody
    goes to the worker of `worker_of`.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._seconds = [deque[float](maxlen=_MEASURED_VISITS) for _ in range(num_workers)]
        self._stays: dict[int, _Stay] = {}  # by client; of those that are free to go nothing is kept

    def assign(self, plan: RoundPlan) -> list[int]:
        """The worker of each visit; rounds in order."""
        self._stays = {
            client: stay for client, stay in self._stays.items() if not stay.is_over or stay.round > plan.reads
        }
        seconds = self._visit_seconds()
        busy_s = [0.0] * self._num_workers
        for visit in plan.visits:
            if visit.client in self._stays:
                worker = self._stays[visit.client].worker
                busy_s[worker] += seconds[worker]
        for visit in plan.visits:
            stay = self._stays.get(visit.client)
            worker = stay.worker if stay is not None else self._soonest(visit.client, busy_s, seconds)
            if stay is None:
                busy_s[worker] += seconds[worker]
            self._stays[visit.client] = _Stay(plan.round, worker, is_over=False)
        return [self._stays[visit.client].worker for visit in plan.visits]

    def restore(self, plans: Sequence[RoundPlan]) -> None:
        """These rounds are over, and what of them is pending is on the workers of `worker_of`. Before the first."""
        for plan in plans:
            for visit in plan.visits:
                self._stays[visit.client] = _Stay(plan.round, self._home(visit.client), is_over=True)

    def note(self, event: Event) -> None:
        """What was told of a visit."""
        if isinstance(event, Span) and event.phase == "compute":
            self._seconds[event.worker].append(event.end_s - event.start_s)
        if isinstance(event, Dropped) or (isinstance(event, Span) and event.phase == "download"):
            stay = self._stays.get(event.client)
            if stay is not None and stay.round == event.round:
                stay.is_over = True

    def hosted(self, worker: int) -> list[int]:
        """The clients that have something under way or pending there, ascending."""
        return sorted(client for client, stay in self._stays.items() if stay.worker == worker)

    def at_home(self, worker: int, num_clients: int) -> list[int]:
        """The first clients that go there where nothing was measured, ascending."""
        return list(range(worker, num_clients, self._num_workers)[:_NAMED_CLIENTS])

    def _visit_seconds(self) -> list[float]:
        """By worker; the mean of the others for one that was not measured yet, 0 where none was."""
        means = [sum(measured) / len(measured) if measured else None for measured in self._seconds]
        known = [mean for mean in means if mean is not None]
        unknown = sum(known) / len(known) if known else 0.0
        return [unknown if mean is None else mean for mean in means]

    def _soonest(self, client: int, busy_s: Sequence[float], seconds: Sequence[float]) -> int:
        """Home, where no other would be done sooner: there its examples may still be."""
        home = self._home(client)
        return min(range(self._num_workers), key=lambda each: (busy_s[each] + seconds[each], each != home))

    def _home(self, client: int) -> int:
        return worker_of(client, self._num_workers)
