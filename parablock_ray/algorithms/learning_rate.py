"""The clients' learning rate by round."""

import math

from parablock_ray.config.training import FederatedTraining


def learning_rate(config: FederatedTraining, round: int) -> float:
    """Linear warm-up, then constant, linear or cosine to nearly 0."""
    if round < config.warmup_rounds:
        return config.lr * (round + 1) / config.warmup_rounds
    done = (round - config.warmup_rounds) / (config.rounds - config.warmup_rounds)
    match config.lr_schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - done)
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))
