"""The master model: fp32, on the server. Takes uploads, is judged, is written out."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from parablock_ray.algorithms.methods import make_server
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.wire import Wire
from parablock_ray.config import Config
from parablock_ray.training.adapters import ADAPTER_FOLDER, save_adapters
from parablock_ray.training.data import FederatedData
from parablock_ray.training.evaluate import held_out_loss
from parablock_ray.training.model import load_model, load_tokenizer, save_model, weights_sha256


class Master:
    """The server without its process. `server` is the method's half; it writes the parameters of this model."""

    def __init__(self, config: Config, population: Population, data: FederatedData) -> None:
        self._config = config
        self._data = data
        self._model = load_model(config.model.name, "float32", config.seed)
        self._model.eval()
        self._tokenizer = load_tokenizer(config.model.name)  # now: a hub may be out of reach when the run is over
        self._parameters = dict(self._model.named_parameters())
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        cut_through = config.network.exchange == "cut_through"
        self.server = make_server(config.method, population, self._parameters, Wire.of(config.network), cut_through)

    def evaluate(self) -> float:
        """Mean loss over the answer tokens of the held-out examples."""
        self.server.settle()
        return held_out_loss(self._model, self._data.eval, self._config.method.batch_size)

    def weights(self) -> Mapping[str, Tensor]:
        """The parameters by name, fp32, tied ones once, as of the last commit; the next one writes into them."""
        self.server.settle()
        return self._parameters

    def sha256(self) -> str:
        """The fingerprint of the master weights."""
        self.server.settle()
        return weights_sha256(self._parameters.items())

    def export(self, folder: Path) -> None:
        """Write model and tokenizer as an ordinary HF folder, and what of adapters is beyond the initial model to
        `adapter/` beside it (PEFT)."""
        self.server.settle()
        save_model(self._model, self._tokenizer, folder)
        adapters = self.server.adapters()
        if adapters:
            save_adapters(adapters, self._config.model.name, self.sha256(), folder.with_name(ADAPTER_FOLDER))
