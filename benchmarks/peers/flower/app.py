"""FedAvg in Flower's simulation: `python app.py FOLDER`, in the environment of requirements.txt. See ../shared.py.

By its message API as its documentation has it, with what a user who knows it well would add: the model is built once a
process and not once a message, tied weights are sent once, and nobody is asked to evaluate.
"""

import json
import sys
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from shared import batches_of, job, model_of, new_optimizer, train

FOLDER = Path(sys.argv[1])

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def local_training(message: Message, context: Context) -> Message:
    folder = FOLDER
    model = model_of(folder)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    batch, num_examples = batches_of(folder)[int(context.node_config["partition-id"])]
    loss = train(folder, model, new_optimizer(model.parameters(), job(folder)["lr"]), batch)
    metrics = MetricRecord({"train_loss": loss, "num-examples": num_examples})
    arrays = ArrayRecord({name: parameter.detach() for name, parameter in model.named_parameters()})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    asked = job(FOLDER)
    strategy = FedAvg(
        fraction_train=asked["per_round"] / asked["num_clients"],
        fraction_evaluate=0.0,
        min_train_nodes=asked["per_round"],
        min_available_nodes=asked["num_clients"],
    )
    initial = ((name, parameter.detach()) for name, parameter in model_of(FOLDER).named_parameters())
    ends_s: list[float] = []

    def note_end(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Called before the first round, and after each."""
        ends_s.append(time.time())
        return MetricRecord({})

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(dict(initial)),
        num_rounds=asked["num_rounds"],
        evaluate_fn=note_end,
    )
    (FOLDER / "rounds.json").write_text(json.dumps(ends_s))


if __name__ == "__main__":
    asked = job(FOLDER)
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=asked["num_clients"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": asked["num_workers"]},
        },
    )
