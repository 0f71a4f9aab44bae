"""The two ways in which a run ends early, as the command line tells them apart."""


class UserError(ValueError):
    """A mistake that the user can mend: names the key or file, what is allowed and what to do. Exit code 2."""


class RunFailed(RuntimeError):
    """A run that broke while it was going on: names client, round and block where it can. Exit code 1."""
