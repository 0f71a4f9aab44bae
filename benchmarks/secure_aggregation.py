"""What secure aggregation costs beside plain summing: `python benchmarks/secure_aggregation.py --json`.

Per size of a block (fp32) and cohort, one thread, words of 32 bits. All parties are in this process; each figure is one
party's, in seconds of the processor:

    client      one client: both exchanges of keys and shares, fixed point and masks for the block, its reveal
    server      keys and shares of all, the sum of the masked vectors, and taking the masks off, when nobody drops out
    dropouts    the same when a tenth of the cohort (one client at least) is lost after the shares
    plain       the server's n_i · Δ_i summed in fp32, as without secure aggregation; what `server` is over
    control     bytes of the messages beside the vector, one client's, both ways

The masked vector has the bytes of the fp32 vector, and 4 more for the weight. In each cohort the smallest block goes
through a whole round, whose sum must be the plain sum of the integers. For larger ones one client masks the vector,
which is then added once for each client: the server's seconds do not depend on what the words are.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from harness import Row, note, parser, report

from parablock_ray.secure.client import SecureClient
from parablock_ray.secure.fixed_point import FixedPoint, finest_fraction_bits
from parablock_ray.secure.masks import Words
from parablock_ray.secure.rounds import SecureRound, threshold_for
from parablock_ray.secure.server import SecureServer

CLIP, MAX_WEIGHT, TOLERATED = 1.0, 100, 0.3
CHUNK_PARAMS = 1 << 20
MEGABYTE = 1e6

T = TypeVar("T")


def main() -> None:
    options = arguments()
    rows = [row for num_clients in options.clients for row in cohort(num_clients, options.megabytes)]
    report(rows, options.json)


def arguments() -> argparse.Namespace:
    options = parser("Secure aggregation against plain summing.")
    options.add_argument("--megabytes", nargs="+", type=int, default=[1, 10, 100], help="sizes of a block in fp32")
    options.add_argument("--clients", nargs="+", type=int, default=[4, 16, 64], help="sizes of the cohort")
    return options.parse_args()


@dataclass
class Costs:
    """Seconds of one round; `control_bytes`: of one client's messages, both ways."""

    clients: list[float]
    server: float = 0.0
    control_bytes: int = 0


def cohort(num_clients: int, megabytes: list[int]) -> Iterator[Row]:
    for size in sorted(megabytes):
        name = f"{num_clients}_clients/{size}_MB"
        note(name)
        num_params = int(size * MEGABYTE / 4)
        edges = [*range(0, num_params, CHUNK_PARAMS), num_params]
        bounds = tuple(itertools.pairwise(edges))
        is_whole = size == min(megabytes)
        vector = np.random.default_rng(size).normal(scale=0.1, size=num_params).astype(np.float32)
        plain = plain_seconds(vector, num_clients)
        for lost, what in ((0, "server"), (max(1, num_clients // 10), "dropouts")):
            costs = one_round(num_clients, bounds, vector, lost, is_whole)
            if what == "server":
                yield Row(f"{name}/client", statistics.median(costs.clients), "s")
                yield Row(f"{name}/plain", plain, "s")
                yield Row(f"{name}/control", float(costs.control_bytes), "bytes")
            yield Row(f"{name}/{what}", costs.server, "s")


def plain_seconds(vector: np.ndarray, num_clients: int) -> float:
    total = np.zeros_like(vector)

    def add_all() -> None:
        for client in range(num_clients):
            for start in range(0, len(vector), CHUNK_PARAMS):
                part = total[start : start + CHUNK_PARAMS]
                part += vector[start : start + CHUNK_PARAMS] * np.float32(1 + client % MAX_WEIGHT)

    return seconds_of(add_all)


def one_round(
    num_clients: int, bounds: tuple[tuple[int, int], ...], vector: np.ndarray, num_lost: int, is_whole: bool
) -> Costs:
    """`is_whole`: every client masks its own vector (all the same one); else one does, for all."""
    fraction_bits = finest_fraction_bits(32, CLIP, MAX_WEIGHT, num_clients)
    encoding = FixedPoint(32, fraction_bits, CLIP, MAX_WEIGHT)
    threshold = threshold_for(num_clients, TOLERATED)
    round = SecureRound("benchmark", 0, 0, tuple(range(num_clients)), threshold, bounds, encoding)
    clients = {client: SecureClient(round, client, 1 + client % MAX_WEIGHT) for client in round.clients}
    server, first = SecureServer(round), num_clients - 1  # `first`: whose bytes are counted; it is never lost
    costs = Costs([0.0] * num_clients)

    def exchange(asked: dict[int, bytes], answer: Callable[[int], bytes], take: Callable[[int, bytes], None]) -> None:
        for client in asked:
            reply, seconds = timed(partial(answer, client))
            costs.clients[client] += seconds
            costs.server += seconds_of(partial(take, client, reply))
            costs.control_bytes += (len(asked[client]) + len(reply)) * (client == first)

    exchange(dict.fromkeys(round.clients, b""), lambda client: clients[client].keys(), server.take_keys)
    key_lists, seconds = timed(server.key_lists)
    costs.server += seconds
    exchange(key_lists, lambda client: clients[client].share(key_lists[client]), server.take_shares)
    share_lists, seconds = timed(server.share_lists)
    costs.server += seconds
    costs.control_bytes += len(share_lists[first])
    kept = [client for client in round.clients if client >= num_lost]
    for client in kept:
        costs.clients[client] += seconds_of(partial(clients[client].take_shares, share_lists[client]))
    chunks: list[Words] = []
    for client in kept:
        if is_whole or not chunks:
            start_s = time.process_time()
            chunks = [clients[client].masked(vector[start:end]) for start, end in bounds]
            mask_s = time.process_time() - start_s
        else:
            clients[client]._step = clients[kept[0]]._step  # as if it had masked: what it reveals is as much
        costs.clients[client] += mask_s
        for chunk, words in enumerate(chunks):
            costs.server += seconds_of(partial(server.add, client, chunk, words))
    survivors, seconds = timed(server.survivors)
    costs.server += seconds
    exchange(survivors, lambda client: clients[client].reveal(survivors[client]), server.take_reveal)
    total, seconds = timed(server.unmask)
    costs.server += seconds
    costs.clients = costs.clients[num_lost:]
    if is_whole:
        weight = sum(1 + client % MAX_WEIGHT for client in kept)
        steps, _ = encoding.encode(vector, 1)
        exact = encoding.as_signed(steps).astype(np.int64) * weight
        if total.weight != weight or not (total.sums == exact).all():
            raise SystemExit("the sum is not the plain sum of the integers: no figure means anything")
    return costs


def timed(call: Callable[[], T]) -> tuple[T, float]:
    start_s = time.process_time()
    found = call()
    return found, time.process_time() - start_s


def seconds_of(call: Callable[[], object]) -> float:
    return timed(call)[1]


if __name__ == "__main__":
    main()
