"""A real slow link as the judge of the model: `sudo python benchmarks/real_link.py --json`.

Two Ray nodes, one of them in a network namespace behind a token-bucket queueing discipline (slow_link.py); the server
on this side, a client on the other, and `network.mode: none`, so nothing in the package waits for time's sake. The
measured seconds of a round are held against the recurrence with the rate of the qdisc, for FedBCD and ParaBlock.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from federation import Federation, FixedWork, Measured, busy_for, make_federation, measure
from harness import Row, note, parser, report
from slow_link import check_possible, slow_link_cluster

from parablock_ray.errors import UserError

MODEL_GOAL = 0.9  # the model's seconds are within 10 % of those measured


def main() -> None:
    options = parser("Round times over a really slow link against the recurrence.")
    options.add_argument("--mbps", type=float, default=100.0, help="rate of the link, each way")
    options.add_argument("--compute-s", type=float, default=1.3, help="seconds of training in a round")
    options.add_argument("--rounds", type=int, default=8)
    chosen = options.parse_args()
    try:
        check_possible()
    except UserError as error:
        sys.exit(f"real_link.py: {error}")
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        federation = make_federation(Path(folder) / "model")
        work = busy_for(chosen.compute_s)
        with slow_link_cluster(chosen.mbps, Path(folder) / "ray"):
            runs = {name: run(name, federation, work, chosen.rounds) for name in ("fedbcd", "parablock")}
    report(figures(runs, chosen.mbps), chosen.json)


def run(method: str, federation: Federation, work: FixedWork, num_rounds: int) -> Measured:
    config = federation.config({"name": method, "rounds": num_rounds}, {"mode": "none"}, num_clients=1)
    made = measure(config, work)
    note(f"{method}: {made.seconds:.2f} s, of which compute {made.compute_s:.3f} s a round")
    return made


def figures(runs: dict[str, Measured], mbps: float) -> Iterator[Row]:
    """Measured and modelled seconds of a round, their agreement (the lesser over the greater), and the overlap."""
    modelled = {name: modelled_s(run, mbps) for name, run in runs.items()}
    for name, run in runs.items():
        num_rounds = run.method.num_rounds
        agreement = min(run.seconds, modelled[name]) / max(run.seconds, modelled[name])
        yield Row(f"model_agreement/{name}", agreement, "ratio", MODEL_GOAL)
        yield Row(f"round/{name}", run.seconds / num_rounds, "s")
        yield Row(f"round_model/{name}", modelled[name] / num_rounds, "s")
        yield Row(f"compute/{name}", run.compute_s, "s")
    yield Row("speedup", runs["fedbcd"].seconds / runs["parablock"].seconds, "x")
    yield Row("speedup_model", modelled["fedbcd"] / modelled["parablock"], "x")


def modelled_s(run: Measured, mbps: float) -> float:
    """The recurrence's seconds for the compute that was measured, over links of the qdisc's rate."""
    link = {"mode": "shaped", "up_mbps": mbps, "down_mbps": mbps}
    network = run.config.network.model_copy(update=link)
    return run.bound_s(config=run.config.model_copy(update={"network": network}))


if __name__ == "__main__":
    main()
