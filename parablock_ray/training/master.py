"""The master model: fp32, on the server. Takes updates, is judged, is written out."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from parablock_ray.algorithms.base import MethodTraits, RoundPlan
from parablock_ray.algorithms.blocks import make_layout
from parablock_ray.algorithms.server import BlockServer, Commit, Publication, ServerSettings
from parablock_ray.config import Config
from parablock_ray.training.data import FederatedData
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.model import load_model, load_tokenizer, save_model, weights_sha256


class Master:
    """The server without its process. The parameters of its model are the master values themselves."""

    def __init__(self, config: Config, traits: MethodTraits, data: FederatedData) -> None:
        self._config = config
        self._data = data
        self._model = load_model(config.model.name, "float32", config.seed)
        self._model.eval()
        self._tokenizer = load_tokenizer(config.model.name)  # now: a hub may be out of reach when the run is over
        self._parameters = dict(self._model.named_parameters())
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        self.layout = make_layout(self._parameters, config.method.num_blocks, config.method.parameters)
        settings = ServerSettings(
            optimizer=config.method.server_optimizer,
            staleness=traits.staleness,
            wire_dtype=getattr(torch, config.network.wire_dtype),
            chunk_bytes=config.network.chunk_bytes,
            cut_through=config.network.exchange == "cut_through",
        )
        self._server = BlockServer(self._parameters, self.layout, settings)

    def bounds(self, block: int) -> list[tuple[int, int]]:
        """The chunks in which this block travels."""
        return self._server.bounds(block)

    def open(self, plan: RoundPlan) -> None:
        """Expect this round's updates."""
        self._server.open(plan)

    def receive(self, round: int, client: int, chunk: int, values: Tensor) -> Iterator[Publication | Commit]:
        """Take one chunk of a delta; see BlockServer.receive."""
        return self._server.receive(round, client, chunk, values)

    def value(self, block: int, as_of: int) -> Tensor:
        """The block as a reader of x^{(≤ as_of)} gets it: flat, wire dtype."""
        return self._server.value(block, as_of)

    def evaluate(self) -> float:
        """Mean loss over the answer tokens of the held-out examples."""
        return held_out_loss(self._model, self._data.eval, self._config.method.batch_size)

    def sha256(self) -> str:
        """The fingerprint of the master weights."""
        return weights_sha256(self._parameters.items())

    def export(self, folder: Path) -> None:
        """Write model and tokenizer as an ordinary HF folder."""
        save_model(self._model, self._tokenizer, folder)
