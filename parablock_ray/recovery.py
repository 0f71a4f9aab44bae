"""What a run does when one of its processes dies: it goes back to its last checkpoint and on from there."""

import logging
from pathlib import Path

from parablock_ray.checkpointing import Resumed, last_resumed, rewind
from parablock_ray.config import Config
from parablock_ray.errors import ProcessDied, RunFailed
from parablock_ray.participation import Participation

_logger = logging.getLogger(__name__)


def recover(death: ProcessDied, config: Config, num_replays: int, participation: Participation) -> Resumed | None:
    """From where to go on after this death, with the run folder as it was then; None: from round 0.

    Every process of the run has been ended. Rounds that are done again give the same values: with `on_death: drop`
    those that were under way go without the clients that died. Raises RunFailed where the run shall end.
    """
    under_way = [f"round {plan.round} (block {plan.block})" for plan in participation.under_way()]
    told = f"{death}; under way: {', '.join(under_way) or 'nothing'}"
    if config.clients.on_death == "fail":
        raise RunFailed(f"{told}; with clients.on_death=replay a run goes on")
    if num_replays == config.clients.max_replays:
        raise RunFailed(f"{told}; clients.max_replays = {num_replays} others before it were survived, this one is not")
    if config.clients.on_death == "drop":
        participation.lose(death.clients, str(death))
    participation.roll_back()
    folder = Path(config.out)
    resumed, _ = last_resumed(folder, config)
    rewind(folder, resumed)
    first = 0 if resumed is None else resumed.saved.round + 1
    _logger.warning("%s; going on from round %d", told, first)
    return resumed
