"""A whole secure round among plain objects, with whoever drops out where; and the sum that it must give."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from parablock_ray.secure.client import SecureClient
from parablock_ray.secure.fixed_point import FixedPoint, finest_fraction_bits
from parablock_ray.secure.rounds import SecureRound
from parablock_ray.secure.server import SecureServer, SecureSum

CLIP, MAX_WEIGHT = 1.0, 50


def make_round(
    num_clients: int, threshold: int, bounds: Iterable[tuple[int, int]] = ((0, 5), (5, 6), (6, 13)), bits: int = 32
) -> SecureRound:
    """Clients 3, 10, 17, …: numbers that are no positions."""
    fraction_bits = finest_fraction_bits(bits, CLIP, MAX_WEIGHT, num_clients)
    encoding = FixedPoint(bits, fraction_bits, CLIP, MAX_WEIGHT)
    clients = tuple(range(3, 3 + 7 * num_clients, 7))
    return SecureRound("test", 4, 0, clients, threshold, tuple(bounds), encoding)


@dataclass
class Federation:
    """`vectors`: rows of fp32 in the order of the clients, some beyond the clip range; `weights` likewise."""

    round: SecureRound
    seed: int = 0
    vectors: dict[int, np.ndarray] = field(init=False)
    weights: dict[int, int] = field(init=False)
    clients: dict[int, SecureClient] = field(init=False)
    server: SecureServer = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        size = len(self.round.clients), self.round.num_params
        vectors = random.normal(scale=CLIP / 2, size=size).astype(np.float32)
        weights = random.integers(1, MAX_WEIGHT, size[0], endpoint=True)
        self.vectors = dict(zip(self.round.clients, vectors, strict=True))
        self.weights = {client: int(n) for client, n in zip(self.round.clients, weights, strict=True)}
        self.clients = {client: SecureClient(self.round, client, self.weights[client]) for client in self.round.clients}
        self.server = SecureServer(self.round)

    def send_keys(self, lost: Collection[int] = ()) -> dict[int, bytes]:
        for client in set(self.round.clients) - set(lost):
            self.server.take_keys(client, self.clients[client].keys())
        return self.server.key_lists()

    def send_shares(self, key_lists: dict[int, bytes], lost: Collection[int] = ()) -> dict[int, bytes]:
        for client in key_lists.keys() - set(lost):
            self.server.take_shares(client, self.clients[client].share(key_lists[client]))
        return self.server.share_lists()

    def send_vectors(
        self, share_lists: dict[int, bytes], lost: Collection[int] = (), half: Collection[int] = ()
    ) -> dict[int, bytes]:
        """`half`: who is lost when all of its chunks but the last are there."""
        for client in share_lists.keys() - set(lost):
            self.clients[client].take_shares(share_lists[client])
            for chunk, words in enumerate(self.masked(client)):
                if client not in half or chunk < len(self.round.bounds) - 1:
                    self.server.add(client, chunk, words)
        return self.server.survivors()

    def masked(self, client: int) -> list[np.ndarray]:
        vector = self.vectors[client]
        return [self.clients[client].masked(vector[start:end]) for start, end in self.round.bounds]

    def send_reveals(self, survivors: dict[int, bytes], lost: Collection[int] = ()) -> SecureSum:
        for client in survivors.keys() - set(lost):
            self.server.take_reveal(client, self.clients[client].reveal(survivors[client]))
        return self.server.unmask()

    def run(
        self,
        without_keys: Collection[int] = (),
        without_shares: Collection[int] = (),
        without_vector: Collection[int] = (),
        half: Collection[int] = (),
        without_reveal: Collection[int] = (),
    ) -> SecureSum:
        key_lists = self.send_keys(without_keys)
        share_lists = self.send_shares(key_lists, without_shares)
        survivors = self.send_vectors(share_lists, without_vector, half)
        return self.send_reveals(survivors, without_reveal)

    def plain(self, clients: Iterable[int]) -> tuple[list[int], int]:
        """Σ n_i · steps_i and Σ n_i in Python's own integers, one number at a time."""
        scale, chosen = 2**self.round.encoding.fraction_bits, list(clients)
        sums = [
            sum(
                self.weights[client] * round(min(max(float(self.vectors[client][place]), -CLIP), CLIP) * scale)
                for client in chosen
            )
            for place in range(self.round.num_params)
        ]
        return sums, sum(self.weights[client] for client in chosen)
