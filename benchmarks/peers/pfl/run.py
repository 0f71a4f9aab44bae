"""FedAvg in Apple's pfl: `torchrun --standalone --nproc_per_node=2 run.py FOLDER`, in the environment of
requirements.txt. See ../shared.py.

As its documentation has it: torchrun, a SimulatedBackend, data in memory, its own uniform sampler (with replacement).
Each process trains half of a cohort on its own copy of the model and adds the deltas up; one all-reduce brings the sums
together. Nobody evaluates: in its first round pfl asks everybody for metrics, whatever it is told, and there are none.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from shared import batches_of, job, model_of, new_optimizer, train
from torch import Tensor, nn

FOLDER = Path(sys.argv[1])


class Client(PyTorchTensorDataset):
    """Its one batch, at the weight of all that it holds."""

    def __init__(self, batch: dict[str, Tensor], num_examples: int) -> None:
        super().__init__(batch)
        self._num_examples = num_examples

    def __len__(self) -> int:
        return self._num_examples


class Module(nn.Module):
    """With the methods that PyTorchModel wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, **batch: Tensor) -> Tensor:
        raise AssertionError("the shared function trains")

    def metrics(self, **batch: Tensor) -> dict[str, Any]:
        return {}  # in its first round pfl evaluates everybody, whatever it is asked


class SharedStep(FederatedAveraging):
    """Trains with the shared function."""

    def train_one_user(
        self, initial_model_state: Any, model: PyTorchModel, user_dataset: Client, central_context: Any
    ) -> tuple[Any, Metrics]:
        model.do_multiple_epochs_of(user_dataset, central_context.model_train_params, shared_step)
        return model.get_model_difference(initial_model_state), Metrics()


def shared_step(
    module: Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], train_kwargs: Any, step_args: Any
) -> None:
    train(FOLDER, module.model, optimizer, batch)


class Ends(TrainingProcessCallback):
    """When the first round began, and when each ended, in this process (time.time())."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.ends_s.append(time.time())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ends_s.append(time.time())
        return False, Metrics()


def timed_rounds() -> list[float]:
    """As the first process to be done with a round saw it: from there on trainings are of the next."""
    asked = job(FOLDER)
    np.random.seed(0)  # noqa: NPY002, the processes draw the same cohorts from numpy's own state
    module = Module(model_of(FOLDER))
    clients = FederatedDataset(
        lambda client: Client(*batches_of(FOLDER)[client]), get_user_sampler("random", range(asked["num_clients"]))
    )
    ends = Ends()
    SharedStep().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=asked["num_rounds"],
            evaluation_frequency=asked["num_rounds"],
            train_cohort_size=asked["per_round"],
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(clients, clients, postprocessors=[WeightByDatapoints()]),
        model=PyTorchModel(module, new_optimizer, torch.optim.SGD(module.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_batch_size=None, local_num_epochs=1, local_learning_rate=asked["lr"]
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[ends],
    )
    of_processes: list[list[float]] = [[]] * asked["num_workers"]
    torch.distributed.all_gather_object(of_processes, ends.ends_s)
    return [min(of_round) for of_round in zip(*of_processes, strict=True)]


if __name__ == "__main__":
    ends_s = timed_rounds()
    if torch.distributed.get_rank() == 0:
        (FOLDER / "rounds.json").write_text(json.dumps(ends_s))
    torch.distributed.destroy_process_group()  # else its threads may end the process with SIGABRT at the very end
