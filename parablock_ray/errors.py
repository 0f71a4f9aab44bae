"""The ways in which a run ends early, as the command line tells them apart."""

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake that the user can mend: names the key or file, what is allowed and what to do. Exit code 2."""


class RunFailed(RuntimeError):
    """A run that broke while it was going on: names client, round and block where it can. Exit code 1."""


class ProcessDied(RunFailed):
    """A process of the run is gone, and with it these clients' (none: it was the server's or the evaluator's)."""

    def __init__(self, message: str, clients: Sequence[int]) -> None:
        super().__init__(message)
        self.clients = clients


class Stopped(Exception):
    """A run that was told to stop (SIGTERM) after so many rounds, from where it can be resumed. Exit code 0."""

    def __init__(self, num_rounds: int) -> None:
        super().__init__(f"stopped after {num_rounds} rounds")
