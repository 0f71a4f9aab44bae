"""The batches of a visit: what the client holds in a fresh order, one example or several in a row."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.rng import generator
from parablock_ray.config import Config
from parablock_ray.training.data import FederatedData
from parablock_ray.training.tokens import TokenizedExamples

Rows = Sequence[Sequence[int]]
"""The examples of each row of a batch."""

_SHOWN_CLIENTS = 8  # whose batches `padding_line` looks at


def visit_order(examples: np.ndarray, num_arrived: int, seed: int, round: int, client: int) -> np.ndarray:
    """The `num_arrived` first of the client's examples to arrive, in this round's order.

    Which they are depends on (seed, client) alone, so what is there once stays. With all of them there the order is
    that of a run in which nothing arrives.
    """
    arrival = torch.randperm(len(examples), generator=generator(seed, "arrival", client)).numpy()
    there = np.sort(examples[arrival[:num_arrived]])
    order: np.ndarray = there[torch.randperm(num_arrived, generator=generator(seed, "batches", client, round)).numpy()]
    return order


def batches(
    store: TokenizedExamples, order: np.ndarray, num_steps: int, batch_size: int, packed_length: int | None
) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of a visit, as `TokenizedExamples` makes them: packed into rows of `packed_length` tokens, or not.

    Examples are taken in order, and once more from its start where they do not fill num_steps · batch_size rows.
    """
    for rows in batch_rows(store, order, num_steps, batch_size, packed_length):
        yield store.batch([example for [example] in rows]) if packed_length is None else store.packed_batch(rows)


def batch_rows(
    store: TokenizedExamples, order: np.ndarray, num_steps: int, batch_size: int, packed_length: int | None
) -> list[Rows]:
    """Which examples stand in which row of each step."""
    num_rows = num_steps * batch_size
    if packed_length is None:
        rows = [[int(example)] for example in order[:num_rows]]
    else:
        rows = first_fit(order, store.lengths[order], num_rows, packed_length)
    return [
        [rows[row % len(rows)] for row in range(step, step + batch_size)] for step in range(0, num_rows, batch_size)
    ]


def first_fit(
    order: Sequence[int] | np.ndarray, lengths: np.ndarray, num_rows: int, row_length: int
) -> list[list[int]]:
    """Each example, in order, in the first row that has room for it, until one finds none in `num_rows` rows.

    Rows are in the order of their first examples. `lengths` are those of `order`, none longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for example, length in zip(order, lengths.tolist(), strict=True):
        row = next((row for row, left in enumerate(room) if length <= left), len(rows))
        if row == num_rows:
            break
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(int(example))
        room[row] -= length
    return rows


def padding_line(data: FederatedData, population: Population, config: Config) -> str:
    """One line for people: how much of the batches is padding, now and with the other `data.packing`."""
    alone, packed = (_padding_share(data, population, config, length) for length in (None, data.max_length))
    now, other, how = (packed, alone, "without") if config.data.packing else (alone, packed, "with")
    return f"padding: {now:.0%} of the tokens of a batch; it would be {other:.0%} {how} data.packing"


def _padding_share(data: FederatedData, population: Population, config: Config, packed_length: int | None) -> float:
    """Over the first clients' visits in round 0, if all of them take part: with what has arrived by then."""
    num_tokens, num_places = 0, 0
    for client in range(min(len(data.clients.num_examples), _SHOWN_CLIENTS)):
        store, examples = data.clients.held_by(client)
        order = visit_order(examples, population.num_examples_at(0, client), config.seed, 0, client)
        lengths = store.lengths
        for rows in batch_rows(store, order, config.method.local_steps, config.method.batch_size, packed_length):
            filled = [sum(lengths[example] for example in row) for row in rows]
            num_tokens += sum(filled)
            num_places += len(filled) * max(filled)
    return 1 - num_tokens / num_places


def move(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
