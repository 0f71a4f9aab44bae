"""`method:`: one model per method, told apart by `method.name`.

To add a method that trains blocks: a config class here, added to `MethodConfig`, and an entry in
`parablock_ray.algorithms.methods.METHODS`. A test asserts that both know the same names. For
federated LoRA see `lora.py`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from parablock_ray.config.lora import (
    FedExLoRA,
    FedIT,
    FFALoRA,
    FlexLoRA,
    FLoRA,
    FLoRIST,
    HetLoRA,
    LoraConfig,
    ZeroPad,
    with_equal_ranks,
)
from parablock_ray.config.training import Correction, FederatedTraining, ServerOptimizer, ServerSGD


class BlockTraining(FederatedTraining):
    """What every method that trains blocks of the model shares."""

    num_blocks: PositiveInt = 4
    order: Literal["random", "ascending", "descending"] = "random"
    # all: embeddings, final norm and head too; lora: adapters of the layers, of one rank, in place of the layers
    parameters: Literal["layers", "all", "lora"] = "layers"
    lora: LoraConfig = LoraConfig()  # of parameters: lora
    server_optimizer: ServerOptimizer = ServerSGD()

    @field_validator("lora")
    @classmethod
    def _equal_ranks(cls, lora: LoraConfig) -> LoraConfig:
        return with_equal_ranks(lora)


class ParaBlock(BlockTraining):
    """ParaBlock (arXiv 2511.19959, our reconstruction): train a block while the last one travels."""

    name: Literal["parablock"]
    staleness: NonNegativeInt = 1
    correction: Correction = "own"


class FedBCD(BlockTraining):
    """Federated block coordinate descent: train, exchange, and only then the next block."""

    name: Literal["fedbcd"]
    staleness: ClassVar[int] = 0
    correction: ClassVar[str] = "own"  # nothing is ever pending


class FedAvg(BlockTraining):
    """FedAvg: the whole model is one block. With staleness 1 it is delayed FedAvg (CoCoD-SGD)."""

    name: Literal["fedavg"]
    num_blocks: Literal[1] = 1
    parameters: Literal["layers", "all", "lora"] = "all"
    staleness: NonNegativeInt = 0
    correction: Correction = "own"


class FedCyBGD(BlockTraining):
    """FedCyBGD (arXiv 2406.11187): one client at a time trains block `client mod num_blocks`."""

    name: Literal["fedcybgd"]
    staleness: ClassVar[int] = 0
    correction: ClassVar[str] = "own"


BlockMethod = ParaBlock | FedBCD | FedAvg | FedCyBGD
MethodConfig = Annotated[
    BlockMethod | FedIT | FFALoRA | ZeroPad | HetLoRA | FedExLoRA | FlexLoRA | FLoRA | FLoRIST,
    Field(discriminator="name"),
]
