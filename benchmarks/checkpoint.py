"""What checkpoints cost, with SmolLM2-135M in five blocks, two clients, on Ray.

    python benchmarks/checkpoint.py --json

The same run without checkpoints and with them; then a checkpoint of that run, part by part, with nothing beside it.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Row, note, parser, report

from parablock_ray.checkpoint import begin, complete, read, write_tensors
from parablock_ray.config import Config, load_config
from parablock_ray.driver import prepare, run
from parablock_ray.training.checkpoints import FOLDER, restored
from parablock_ray.training.master import Master

_DEMO = Path(__file__).parents[1] / "configs" / "demo_parablock.yaml"
_OVERRIDES = [
    "data.tasks=[chain_sum, gcd]",
    "data.num_train=64",
    "data.num_eval=4",
    "clients.num=2",
    "workers.num=1",
    "network.mode=none",
    "tracking.wandb=off",
]
_MEGABYTE = 1e6


def main() -> None:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=8, help="of each run")
    options.add_argument("--every", type=int, default=4, help="rounds between two checkpoints")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*_OVERRIDES, f"method.rounds={arguments.rounds}"]
        without = load_config(_DEMO, [*overrides, f"out={folder}/without"])
        every = load_config(_DEMO, [*overrides, f"out={folder}/with", f"checkpoint.every={arguments.every}"])
        report([*held_up(without, every), *parts(every)], arguments.json)


def held_up(without: Config, every: Config) -> Iterator[Row]:
    """Seconds of the rounds of both runs, whose values are the same."""
    note("a run without checkpoints")
    alone = run(without)
    note("the same with checkpoints")
    beside = run(every)
    assert alone["weights_sha256"] == beside["weights_sha256"]
    yield Row("seconds of the rounds without checkpoints", alone["seconds"], "s")
    yield Row("seconds of the rounds with checkpoints", beside["seconds"], "s")
    yield Row("speed with checkpoints over speed without", alone["seconds"] / beside["seconds"], "ratio", goal=0.95)


def parts(config: Config) -> Iterator[Row]:
    """The last checkpoint of the run with them, written and read again part by part."""
    root = Path(config.out) / FOLDER
    saved = read(max(root.iterdir()))
    files = sorted(saved.folder.iterdir())
    for file in files:
        yield Row(file.name, file.stat().st_size / _MEGABYTE, "MB")
    note("its parts")
    prepared = prepare(config)
    master = Master(config, prepared.population, prepared.data, root, attempt=0)
    start_s = time.perf_counter()
    state = master.server.state()
    yield Row("copy of the server's state, for which the server waits", time.perf_counter() - start_s, "s")
    uploads = {f"{round}.{client}": each for (round, client), each in restored(saved, 1).uploads.items()}
    start_s = time.perf_counter()
    again = begin(root, 0)
    digests = {name: write_tensors(again, name, held) for name, held in (("state", state), ("uploads", uploads))}
    again = complete(again, 0, digests, saved.about)
    yield Row("write, hash and sync, beside the rounds", time.perf_counter() - start_s, "s")
    start_s = time.perf_counter()
    read(again).tensors("state")
    yield Row("check and read", time.perf_counter() - start_s, "s")


if __name__ == "__main__":
    main()
