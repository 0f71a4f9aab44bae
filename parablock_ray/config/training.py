"""What all methods share: rounds, how a client trains in one of them, and the server's step."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from parablock_ray.config.base import Strict

Correction = Literal["own", "eager", "stale"]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class ServerSGD(Strict):
    """x += lr · Δ̄. With lr 1 the server takes the weighted mean as it is."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 1.0


class ServerMomentum(Strict):
    """Heavy-ball (`momentum`) or Nesterov momentum on the weighted mean, kept per block."""

    name: Literal["momentum", "nesterov"]
    lr: PositiveFloat = 1.0
    momentum: Fraction = 0.9


class ServerAdagrad(Strict):
    """FedAdagrad (Reddi et al., arXiv 2003.00295, algorithm 2), kept per block."""

    name: Literal["adagrad"]
    lr: PositiveFloat = 0.01
    beta1: Fraction = 0.9
    tau: PositiveFloat = 1e-3


class ServerAdaptive(Strict):
    """FedAdam, FedYogi (Reddi et al., arXiv 2003.00295, algorithm 2), kept per block."""

    name: Literal["adam", "yogi"]
    lr: PositiveFloat = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    tau: PositiveFloat = 1e-3


ServerOptimizer = Annotated[ServerSGD | ServerMomentum | ServerAdagrad | ServerAdaptive, Field(discriminator="name")]


class FederatedTraining(Strict):
    """Rounds, and how a client trains in one of them."""

    by_chunk: ClassVar[bool] = True  # a chunk can be aggregated without its neighbours
    name: str
    rounds: PositiveInt = 10
    local_steps: PositiveInt = 2
    batch_size: PositiveInt = 4
    lr: PositiveFloat = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: NonNegativeInt = 0
    local_optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = None
    prox_mu: NonNegativeFloat = 0.0  # FedProx: pull towards the start of the visit

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "FederatedTraining":
        if self.warmup_rounds >= self.rounds:
            raise ValueError(f"warmup_rounds ({self.warmup_rounds}) must be less than rounds ({self.rounds})")
        return self
