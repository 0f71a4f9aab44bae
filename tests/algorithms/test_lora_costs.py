"""What federated LoRA costs, against the figures of FLoRIST's paper (arXiv 2506.09199) and against real tensors."""

import pytest
import torch

from parablock_ray.algorithms import lora
from parablock_ray.algorithms.lora import Adapter
from parablock_ray.algorithms.lora_costs import (
    METHODS,
    download_efficiency,
    download_params,
    download_ranks,
    flexlora_operations,
    florist_operations,
    paper_megabits,
    upload_params,
)
from parablock_ray.errors import UserError

EQUAL = [16] * 8
MIXED = [4, 4, 8, 8, 16, 16, 32, 64]
TINYLLAMA = [(2048, 2048), (256, 2048)] * 22  # q and v
LLAMA_7B = [(4096, 4096), (4096, 4096)] * 32
TOLERANCE = 2e-3


@pytest.mark.parametrize(
    ("method", "shapes", "ranks", "golden"),
    [
        ("fedit", TINYLLAMA, EQUAL, 14.20e-4),
        ("flora", TINYLLAMA, EQUAL, 1.78e-4),
        ("ffa_lora", TINYLLAMA, EQUAL, 28.40e-4),
        ("fedit", LLAMA_7B, EQUAL, 9.77e-4),
        ("flora", TINYLLAMA, MIXED, 1.495e-4),
        ("zero_pad", TINYLLAMA, MIXED, 3.55e-4),
    ],
)
def test_efficiency_as_printed(method, shapes, ranks, golden):
    half_a_digit = 0.005e-4  # 1.7756e-4 is printed as 1.78e-4, which is 0.25 % off
    assert download_efficiency(method, shapes, ranks, []) == pytest.approx(golden, rel=TOLERANCE, abs=half_a_digit)


def test_the_papers_megabytes_are_megabits_of_fp16():
    assert paper_megabits(sum(m * n for m, n in TINYLLAMA)) == pytest.approx(1660.94, rel=TOLERANCE)
    rank_16 = upload_params("fedit", TINYLLAMA, EQUAL)
    assert rank_16 == [2_252_800] * 8
    assert paper_megabits(rank_16[0]) == pytest.approx(36.04, rel=TOLERANCE)
    # Printed as 36.04, too; but FLoRA sends all eight adapters to each client.
    assert paper_megabits(download_params("flora", TINYLLAMA, EQUAL, [])[0]) == pytest.approx(288.36, rel=TOLERANCE)


def test_server_operations_as_printed():
    layers = [(4096, 4096)] * 32
    assert flexlora_operations(layers, MIXED) == pytest.approx(2209.37e9, rel=TOLERANCE)
    assert florist_operations(layers, MIXED) == pytest.approx(6.17e9, rel=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_params_are_those_of_the_tensors_that_travel(method):
    m, n, ranks = 12, 7, [3, 3, 3]
    A = torch.randn(3, n)
    adapters = [Adapter(torch.randn(m, 3), A if method == "ffa_lora" else torch.randn(3, n), 2.0) for _ in ranks]
    weights = [0.5, 0.25, 0.25]
    kept = []
    if method == "florist":
        B_g, A_g, info = lora.florist(adapters, weights, 0.9)
        sent, kept = [B_g, A_g], [info.rank]
    elif method == "fedex_lora":
        mean, residual = lora.fedex_lora(adapters, weights)
        sent = [mean.B, mean.A, residual.B, residual.A]
    else:
        result = getattr(lora, method)(adapters, weights)
        received = result if method in ("flora", "zero_pad") else lora.fit(result, 3, 2.0)
        sent = [received.B] if method == "ffa_lora" else [received.B, received.A]
    num_params = sum(tensor.numel() for tensor in sent)
    assert download_params(method, [(m, n)], ranks, kept) == [num_params] * 3
    assert upload_params(method, [(m, n)], ranks) == [m * 3 if method == "ffa_lora" else (m + n) * 3] * 3


def test_mixed_ranks_download_their_own_where_the_method_fits_them():
    assert download_ranks("hetlora", [(8, 8)], [2, 4], []) == [[2], [4]]
    assert download_ranks("flexlora", [(8, 8)], [2, 4], []) == [[2], [4]]
    assert download_ranks("florist", [(8, 8), (8, 8)], [2, 4], [3, 1]) == [[3, 1], [3, 1]]
    assert upload_params("florist", [(8, 6), (8, 8)], [2, 4]) == [60, 120]
    assert download_efficiency("florist", [(8, 8), (8, 8)], [2, 4], [3, 1]) == pytest.approx(1 / 4)
    assert download_efficiency("hetlora", [(8, 8)], [2, 4], []) == pytest.approx(1 / 3)


def test_fedex_residual_counts():
    assert download_params("fedex_lora", [(100, 100)], [2, 2], []) == [(2 + 4) * 200] * 2
    assert download_efficiency("fedex_lora", [(100, 100)], [2, 2], []) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: upload_params("lora", [(8, 8)], [2]), "method: 'lora'; allowed: fedit"),
        (lambda: upload_params("flora", [(8, 8)], [2, 0]), r"ranks: \[2, 0\]; allowed: one of 1 or more"),
        (lambda: download_params("fedit", [(8, 8)], [2, 4], []), "one rank for all clients, since fedit averages"),
        (lambda: download_params("florist", [(8, 8)], [2, 4], []), "kept_ranks: 0 for 1 matrices; allowed: one for"),
    ],
)
def test_mistakes(mistake, message):
    with pytest.raises(UserError, match=message):
        mistake()
