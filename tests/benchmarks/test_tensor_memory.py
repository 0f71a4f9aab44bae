"""The recorder of memory against sums that can be made by hand."""

import torch

from benchmarks.tensor_memory import TensorMemory


def test_what_is_alive_at_once_is_counted_not_what_was_there_before():
    given = torch.ones(1000)
    with TensorMemory() as memory:
        kept = [given * 2 for _ in range(3)]  # 12,000 bytes
        for _ in range(5):
            given.detach()[:500] + 1  # 2,000 bytes, each gone before the next
    assert memory.peak_bytes == 14_000
    assert memory.largest == 1000
    assert len(kept) == 3


def test_views_and_changes_in_place_take_nothing():
    with TensorMemory() as memory:
        matrix = torch.zeros(20, 30)
        matrix.T.add_(1)
        matrix[3:].mul_(2)
    assert memory.peak_bytes == 2_400
