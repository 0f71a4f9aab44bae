"""`method:`: one model per method, told apart by `method.name`.

To add a method: a config class here, added to `MethodConfig`, and an entry in
`parablock_ray.algorithms.methods.METHODS`. A test asserts that both know the same names.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from parablock_ray.config.base import Strict

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

    rounds: PositiveInt = 10
    local_steps: PositiveInt = 2
    batch_size: PositiveInt = 4
    lr: PositiveFloat = 1e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    local_optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: PositiveFloat | None = None
    prox_mu: Annotated[float, Field(ge=0)] = 0.0  # FedProx: pull towards the start of the visit

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "FederatedTraining":
        if self.warmup_rounds >= self.rounds:
            raise ValueError(f"warmup_rounds ({self.warmup_rounds}) must be less than rounds ({self.rounds})")
        return self


class BlockTraining(FederatedTraining):
    """What every method that trains blocks of the model shares."""

    num_blocks: PositiveInt = 4
    order: Literal["random", "ascending", "descending"] = "random"
    parameters: Literal["layers", "all"] = "layers"  # all: embeddings, final norm and head too
    server_optimizer: ServerOptimizer = ServerSGD()


class ParaBlock(BlockTraining):
    """ParaBlock (arXiv 2511.19959, our reconstruction): train a block while the last one travels."""

    name: Literal["parablock"]
    staleness: Annotated[int, Field(ge=0)] = 1
    correction: Literal["own", "eager", "stale"] = "own"


class FedBCD(BlockTraining):
    """Federated block coordinate descent: train, exchange, and only then the next block."""

    name: Literal["fedbcd"]
    staleness: ClassVar[int] = 0
    correction: ClassVar[str] = "own"  # nothing is ever pending


class FedAvg(BlockTraining):
    """FedAvg: the whole model is one block. With staleness 1 it is delayed FedAvg (CoCoD-SGD)."""

    name: Literal["fedavg"]
    num_blocks: Literal[1] = 1
    parameters: Literal["layers", "all"] = "all"
    staleness: Annotated[int, Field(ge=0)] = 0
    correction: Literal["own", "eager", "stale"] = "own"


class FedCyBGD(BlockTraining):
    """FedCyBGD (arXiv 2406.11187): one client at a time trains block `client mod num_blocks`."""

    name: Literal["fedcybgd"]
    staleness: ClassVar[int] = 0
    correction: ClassVar[str] = "own"


BlockMethod = ParaBlock | FedBCD | FedAvg | FedCyBGD
MethodConfig = Annotated[BlockMethod, Field(discriminator="name")]
