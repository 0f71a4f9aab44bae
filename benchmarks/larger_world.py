"""A larger world than this machine, simulated: `python benchmarks/larger_world.py --json`.

Federations of Llamas of 1 to 8 billion parameters, priced before a run as `parablock plan` prices them: the package's
own schedule, sizes and recurrence, no weights, nothing trained. A block is one decoder layer, bf16 on the wire; every
client trains it for some local steps and is a computer of its own; three turns of twelve blocks spread over the depth.

    c    seconds of a visit: a full training step takes 6 FLOP per parameter and token, at `--tflops`; a block's step a
         share of it that falls with its depth, as measured (`STEP_SHARES`)
    link each client's, the same both ways; `--server-gbps` is the server's, which all clients share, each way

Only products matter: computers and links that are all k times as fast give the same ratios.

A tree of aggregators has two levels, about √N aggregators for N clients, each with a link like the server's. It is
priced by the same recurrence, twice: the aggregators alone, which compute nothing, take m seconds for their exchange
with the root; a group of clients then sees its aggregator, over links whose latency is longer by m/2 each way. That the
root's line is free again by the next round is seen to; an aggregator's own message to the root is not in its queue.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import matplotlib as mpl
import torch
from harness import Row, note, parser, report
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from parablock_ray.algorithms.population import Population
from parablock_ray.config import Config
from parablock_ray.planning.scenario import Scenario

MODELS = {
    "Llama-3.2-1B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "Llama-3.2-3B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "Llama-2-7B": LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "Llama-3-8B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
# A step on the lowest and on the highest block over a full step (134.5 M Llama, three of its 30 layers a block, 4 × 128
# tokens, 2.8 and 1.6 s of 4.9 s): the backward pass ends at the block. In between it falls with the depth.
STEP_SHARES = (0.57, 0.33)
NUM_CHUNKS = 16
NUM_ROUNDS = 36
LINKS_MBPS = (20, 100, 300, 1000, 10_000)
NUM_CLIENTS = (8, 32, 100, 316, 1000)
LARGEST = "Llama-3-8B"
AT_THE_WALL_MBPS = 1000  # of each client, where there are more and more of them
COLOURS = {"Llama-3.2-1B": "#0072b2", "Llama-3.2-3B": "#009e73", "Llama-2-7B": "#b08300", "Llama-3-8B": "#d55e00"}


@dataclass(frozen=True)
class Way:
    """One way to make a round."""

    method: str
    pipeline: str
    exchange: str


FEDBCD = Way("fedbcd", "serial", "store_and_forward")
WAYS = {
    "FedBCD": FEDBCD,
    "FedBCD, cut-through": Way("fedbcd", "duplex", "cut_through"),
    "ParaBlock": Way("parablock", "serial", "store_and_forward"),
    "ParaBlock, duplex": Way("parablock", "duplex", "store_and_forward"),
    "ParaBlock, duplex, cut-through": Way("parablock", "duplex", "cut_through"),
}
FASTEST = "ParaBlock, duplex, cut-through"
AT_THE_WALL = ("FedBCD", "ParaBlock", "ParaBlock, duplex")  # whole blocks: in a long queue chunks gain little more


@dataclass(frozen=True)
class World:
    """`link_mbps` of each client, `server_mbps` of the server (inf: no limit), each way; `latency_ms` one way."""

    model: str
    num_clients: int
    link_mbps: float
    server_mbps: float
    latency_ms: float
    tflops: float
    visit_tokens: int


def main() -> None:
    options = arguments()
    rows = list(figures(options))
    found = {row.name: row.value for row in rows}
    if options.tables:
        options.tables.write_text(tables(found))
    if options.figure:
        draw(found, options, options.figure)
    report(rows, options.json)


def arguments() -> argparse.Namespace:
    options = parser("Where overlap pays, where the server's link is the wall, what a tree gives: simulated.")
    options.add_argument("--tflops", type=float, default=100.0, help="of a client, in a full training step")
    options.add_argument("--visit-tokens", type=int, default=81_920, help="of a visit: 10 steps of 16 x 512")
    options.add_argument("--latency-ms", type=float, default=20.0, help="one way")
    options.add_argument("--server-gbps", type=float, default=10.0, help="of the server and each aggregator, each way")
    options.add_argument("--figure", type=Path, help="write the plot there, as SVG")
    options.add_argument("--tables", type=Path, help="write the tables there, as Markdown")
    return options.parse_args()


def figures(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds of a round, and ratios."""
    server_mbps = 1000 * options.server_gbps
    common = options.latency_ms, options.tflops, options.visit_tokens
    for model in MODELS:
        for link_mbps in LINKS_MBPS:
            note(f"{model}, {link_mbps} Mbit/s")
            world = World(model, 8, link_mbps, math.inf, *common)
            yield from pays(world, server_mbps, f"{model}/{link_mbps}_mbps")
    for num_clients in NUM_CLIENTS:
        note(f"{LARGEST}, {num_clients} clients")
        world = World(LARGEST, num_clients, AT_THE_WALL_MBPS, server_mbps, *common)
        yield from at_the_wall(world, f"{LARGEST}/{num_clients}_clients")


def pays(world: World, server_mbps: float, name: str) -> Iterator[Row]:
    """A few clients whose server has no limit: what overlap is worth, and how many of them would fill a server's line
    of `server_mbps` each way."""
    seconds = {each: round_s(world, way) for each, way in WAYS.items()}
    yield Row(f"larger_world/seconds/{name}/compute", compute_s(world), "s")
    yield Row(f"larger_world/seconds/{name}/FedBCD", seconds["FedBCD"], "s")
    for each in list(WAYS)[1:]:
        yield Row(f"larger_world/speed/{name}/{each}", seconds["FedBCD"] / seconds[each], "x", spread=0.0)
    busy_s = block_bytes(world) * 8e-6 / server_mbps  # of the server's line, by one client, each way
    yield Row(f"larger_world/wall/{name}", seconds[FASTEST] / busy_s, "clients")


def at_the_wall(world: World, name: str) -> Iterator[Row]:
    """More and more clients at one server."""
    free = replace(world, server_mbps=math.inf)
    for each in AT_THE_WALL:
        way = WAYS[each]
        yield Row(f"larger_world/seconds/{name}/{each}", round_s(world, way), "s")
        yield Row(f"larger_world/seconds/{name}/{each}, tree", tree_round_s(world, way), "s")
        yield Row(f"larger_world/seconds/{name}/{each}, no limit", round_s(free, way), "s")


def round_s(world: World, way: Way) -> float:
    """Seconds of a round: the whole run's over its rounds, its start and its end included."""
    scenario = scenario_of(world, way)
    return scenario.total_s(scenario.config.network) / NUM_ROUNDS


def tree_round_s(world: World, way: Way) -> float:
    """The same with two levels of aggregators."""
    num_groups = math.isqrt(world.num_clients)
    root = replace(world, num_clients=num_groups, link_mbps=world.server_mbps, tflops=math.inf)
    root_s = round_s(root, Way("fedbcd", way.pipeline, way.exchange))
    group = replace(
        world,
        num_clients=-(-world.num_clients // num_groups),
        latency_ms=world.latency_ms + 1000 * root_s / 2,
    )
    seconds = round_s(group, way)
    busy_s = num_groups * block_bytes(world) * 8e-6 / world.server_mbps
    assert busy_s <= seconds, "the root's line would not be free by the next round"
    return seconds


def compute_s(world: World) -> float:
    """Of a visit, the mean over the blocks."""
    step_s = scenario_of(world, FEDBCD).step_s
    return sum(step_s) / len(step_s)


def block_bytes(world: World) -> int:
    scenario = scenario_of(world, FEDBCD)
    return scenario.wire.num_bytes(scenario.layout.blocks[0].num_params)


def scenario_of(world: World, way: Way) -> Scenario:
    """The run that is not made."""
    of_model = shapes(world.model)
    num_layers = MODELS[world.model].num_hidden_layers
    num_bytes = 2 * sum(tensor.numel() for name, tensor in of_model.items() if ".layers.0." in name)
    num_chunks = NUM_CHUNKS if way.exchange == "cut_through" else 1
    limits = {} if world.server_mbps == math.inf else dict.fromkeys(("up", "down"), world.server_mbps)
    config = Config.model_validate(
        {
            "name": "larger_world",
            "out": "none",
            "model": {"name": world.model},
            "data": {"source": "none"},
            "clients": {"num": world.num_clients},
            "method": {
                "name": way.method,
                "rounds": NUM_ROUNDS,
                "num_blocks": num_layers,
                "order": "ascending",
                "local_steps": 1,
            },
            "network": {
                "mode": "virtual",
                "up_mbps": world.link_mbps,
                "down_mbps": world.link_mbps,
                "latency_ms": world.latency_ms,
                "pipeline": way.pipeline,
                "exchange": way.exchange,
                "chunk_mb": -(-num_bytes // num_chunks) / 1e6,
                "wire_dtype": "bfloat16",
                **{f"server_{each}_mbps": limit for each, limit in limits.items()},
            },
        }
    )
    population = Population((100,) * world.num_clients, world.num_clients, seed=0)
    return Scenario(config, population, of_model, world.num_clients, step_seconds(world, num_layers))


def step_seconds(world: World, num_layers: int) -> tuple[float, ...]:
    """By block, all local steps of a visit as one."""
    num_params = sum(tensor.numel() for tensor in shapes(world.model).values())
    full_s = 6 * num_params * world.visit_tokens / (world.tflops * 1e12)
    lowest, highest = STEP_SHARES
    depths = [layer / (num_layers - 1) for layer in range(num_layers)]
    return tuple(full_s * (lowest + (highest - lowest) * depth) for depth in depths)


def tables(found: Mapping[str, float]) -> str:
    """As the document has them."""
    others = list(WAYS)[1:]
    lines = [f"| model | link, Mbit/s | `c`, s | FedBCD, s | {' | '.join(others)} | the wall |"]
    lines.append("|---|" + "---|" * (len(others) + 4))
    for model in MODELS:
        for link_mbps in LINKS_MBPS:
            of = f"{model}/{link_mbps}_mbps"
            speeds = [f"{found[f'larger_world/speed/{of}/{each}']:.2f}x" for each in others]
            c, fedbcd = (found[f"larger_world/seconds/{of}/{each}"] for each in ("compute", "FedBCD"))
            cells = [
                model,
                f"{link_mbps:,}",
                f"{c:.1f}",
                f"{fedbcd:.1f}",
                *speeds,
                f"{found[f'larger_world/wall/{of}']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    ways = [f"{each}{kind}" for each in AT_THE_WALL for kind in ("", ", tree", ", no limit")]
    lines += ["", f"| clients | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    for num_clients in NUM_CLIENTS:
        seconds = [found[f"larger_world/seconds/{LARGEST}/{num_clients}_clients/{each}"] for each in ways]
        lines.append(f"| {num_clients:,} | {' | '.join(f'{each:.0f}' for each in seconds)} |")
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, float], options: argparse.Namespace, file: Path) -> None:
    """Where overlap pays, and where the server's link is the wall."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "parablock-ray", "font.family": "sans-serif", "font.size": 10}
    with mpl.rc_context(style):
        chart = Figure(figsize=(10, 4.2), layout="constrained")
        pays, wall = chart.subplots(1, 2)
        draw_speeds(pays, found)
        draw_wall(wall, found, options.server_gbps)
        for axes in (pays, wall):
            axes.grid(color="#e4e7ec")
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.legend(frameon=False, fontsize=8)
        chart.savefig(file, format="svg", metadata={"Date": None})


def draw_speeds(axes: Axes, found: Mapping[str, float]) -> None:
    for model, colour in COLOURS.items():
        for way, line in ((FASTEST, "-"), ("ParaBlock", "--")):
            speeds = [found[f"larger_world/speed/{model}/{link}_mbps/{way}"] for link in LINKS_MBPS]
            label = model if line == "-" else None
            axes.plot(LINKS_MBPS, speeds, line, color=colour, marker="o", markersize=3, label=label)
    axes.set(xscale="log", xlabel="a client's link, Mbit/s", ylabel="speed over FedBCD")
    axes.set_title("8 clients: duplex with cut-through (solid), as in the paper (dashed)", fontsize=9)


def draw_wall(axes: Axes, found: Mapping[str, float], server_gbps: float) -> None:
    colours = dict(zip(AT_THE_WALL, ("#0072b2", "#009e73", "#d55e00"), strict=True))
    for way, colour in colours.items():
        for kind, line in (("", "-"), (", tree", "--"), (", no limit", ":")):
            names = (f"larger_world/seconds/{LARGEST}/{num}_clients/{way}{kind}" for num in NUM_CLIENTS)
            axes.plot(NUM_CLIENTS, [found[name] for name in names], line, color=colour, label=f"{way}{kind}")
    axes.set(xscale="log", yscale="log", xlabel="clients a round", ylabel="seconds of a round")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_title(f"{LARGEST}, {AT_THE_WALL_MBPS:,} Mbit/s each, server {server_gbps:g} Gbit/s", fontsize=9)


@cache
def shapes(model: str) -> Mapping[str, Tensor]:
    """Its parameters by name, without values."""
    with torch.device("meta"):
        return dict(LlamaForCausalLM(MODELS[model]).named_parameters())


if __name__ == "__main__":
    main()
