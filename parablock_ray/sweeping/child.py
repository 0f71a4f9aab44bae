"""One run of a sweep, in a process of its own: `python -m parablock_ray.sweeping.child CONFIG FAILURE`.

A process gives back all of its memory when it ends, and takes nothing with it when it dies.
"""

import signal
import sys
from pathlib import Path

from parablock_ray.config import load_config
from parablock_ray.errors import RunFailed, Stopped, UserError
from parablock_ray.importing import fast_imports
from parablock_ray.starting import own_cluster_of


def main(config_file: str, failure_file: str) -> None:
    """Run CONFIG, from its last checkpoint if it has one; why it failed goes to the file FAILURE and to stderr."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the sweep runs in the background
    try:
        config = load_config(config_file, [])
        with own_cluster_of(config):  # takes seconds, in which Ctrl-C ends us too
            with fast_imports():
                from parablock_ray.resume import run_or_resume

            run_or_resume(config)
    except (UserError, RunFailed, Stopped) as error:
        Path(failure_file).write_text(f"{error}\n", "utf-8")
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
