"""What a local step on a block costs beside its peers: `python benchmarks/engine.py --json`.

SmolLM2-135M in fp32 on one thread, batches of 4 × 128 tokens that all count as answer, so that everybody computes the
same logits; AdamW, fused, without clipping. Loops take turns in one process, on one model, in seconds of the processor;
the lowest, the middle and the highest block.

    plain   a loop in plain torch with the same frozen parameters: what an engine could be at best. Losses must
            be the engine's to 1e-3: it divides a sum by the number of tokens where this takes a mean
    full    the same loop with every parameter trained
    peft    Hugging Face's Trainer and PEFT: LoRA of rank 16 on the q and v projections, with the same batches

    engine/speed_vs_plain           the least of engine/speed_vs_plain/ENGINE/BLOCK
    engine/speed_vs_full/BLOCK      seconds of a full step over ours (`--engine`); …_vs_peft the same
    engine/memory_vs_full/BLOCK     peak memory of a full step, the model included, over ours; …_vs_peft the same
    engine/memory_vs_rule/BLOCK     2M + 16M/D bytes for M parameters and a block of M/D, over what a bf16 model, its
                                    fp32 masters, gradients and moments really take; activations apart
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from harness import Row, in_turns, median_row, note, parser, report, speed_row
from peft import LoraConfig, get_peft_model
from tensor_memory import TensorMemory
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from parablock_ray.algorithms.blocks import make_layout
from parablock_ray.training.engine import DeepSpeedEngine, Engine, TorchEngine
from parablock_ray.training.model import cast_parameters, load_model
from parablock_ray.training.optimizer import LocalSettings

BLOCKS = ("lowest", "middle", "highest")
GOAL = 0.97
LR = 1e-5
SETTINGS = LocalSettings("adamw", weight_decay=0.0, max_grad_norm=None, prox_mu=0.0)
RULE_TOKENS = (1, 16)  # bf16 is slow on most CPUs, and activations do not count

Batch = Mapping[str, Tensor]


class PlainLoop:
    """The peer, as one would write it; `begin` and `step` like an engine."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def begin(self, parameters: Sequence[Parameter], lr: float) -> None:
        self._model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)

    def step(self, batch: Batch) -> float:
        logits = self._model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def end(self) -> None:
        del self._optimizer


Loop = Engine | PlainLoop


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    report(list(figures(options)), options.json)


def arguments() -> argparse.Namespace:
    options = parser("A local step on a block beside a plain loop, full fine-tuning, and Trainer with PEFT.")
    options.add_argument("--model", default="smollm2-135m-instruct", help="as in model.name")
    options.add_argument("--num-blocks", type=int, default=10, help="D")
    options.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS), metavar="WHERE")
    options.add_argument("--batch", type=int, nargs=2, default=[4, 128], metavar=("ROWS", "TOKENS"))
    options.add_argument("--engine", choices=["deepspeed", "torch"], default="deepspeed")
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--steps", type=int, default=3, help="of a turn; the first does not count")
    return options.parse_args()


def figures(options: argparse.Namespace) -> Iterator[Row]:
    model = load_model(options.model, "float32", seed=0)
    model.train()
    batch = batch_of(options.batch, model.config.vocab_size)
    peft_s, peft_bytes = peft_steps(options, batch)  # before DeepSpeed, whose process group it would join
    blocks = blocks_of(model, options.num_blocks, options.blocks)
    engines: dict[str, Engine] = {
        "deepspeed": DeepSpeedEngine(model, SETTINGS, {}),
        "torch": TorchEngine(model, SETTINGS),
    }
    plain = PlainLoop(model)
    everything = list(model.parameters())
    model_bytes = sum(parameter.nbytes for parameter in everything)
    full_bytes = model_bytes + peak_bytes(plain, everything, batch)
    worst = None
    for where, parameters in blocks.items():
        note(f"{where} block")
        check_same(engines, plain, parameters, batch)
        loops: dict[str, Loop] = {**engines, "plain": plain}
        seconds = in_turns(
            {name: stepping(loop, parameters, batch, options.steps) for name, loop in loops.items()}
            | {"full": stepping(plain, everything, batch, options.steps)},
            options.turns,
        )
        for name in engines:
            row = speed_row(f"engine/speed_vs_plain/{name}/{where}", seconds[name], seconds["plain"], GOAL)
            worst = row if worst is None or row.value < worst.value else worst
            yield row
        yield speed_row(f"engine/speed_vs_full/{where}", seconds[options.engine], seconds["full"])
        own = median_row(f"engine/seconds/{where}", seconds[options.engine], "s")
        yield own
        yield Row(f"engine/speed_vs_peft/{where}", peft_s / own.value, "x")
        own_bytes = model_bytes + peak_bytes(engines[options.engine], parameters, batch)
        yield Row(f"engine/peak_memory/{where}", own_bytes / 1e6, "MB")
        yield Row(f"engine/memory_vs_full/{where}", full_bytes / own_bytes, "x", spread=0.0)
        yield Row(f"engine/memory_vs_peft/{where}", peft_bytes / own_bytes, "x", spread=0.0)
    yield median_row("engine/seconds/full", seconds["full"], "s")
    yield Row("engine/peak_memory/full", full_bytes / 1e6, "MB")
    yield Row("engine/seconds/peft", peft_s, "s")
    yield Row("engine/peak_memory/peft", peft_bytes / 1e6, "MB")
    assert worst is not None
    yield Row("engine/speed_vs_plain", worst.value, "x", GOAL, spread=worst.spread)
    del engines, plain
    cast_parameters(model, torch.bfloat16)
    yield from memory_vs_rule(model, blocks)


def batch_of(shape: Sequence[int], vocab_size: int) -> dict[str, Tensor]:
    tokens = torch.randint(vocab_size, tuple(shape), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "labels": tokens.clone(), "attention_mask": torch.ones_like(tokens)}


def blocks_of(model: PreTrainedModel, num_blocks: int, chosen: Sequence[str]) -> dict[str, list[Parameter]]:
    """Those that are chosen of the lowest, the middle and the highest."""
    named = dict(model.named_parameters())
    layout = make_layout(named, num_blocks, "layers")
    places = {"lowest": 0, "middle": num_blocks // 2, "highest": num_blocks - 1}
    return {where: [named[name] for name in layout.blocks[places[where]].names] for where in chosen}


def check_same(engines: Mapping[str, Engine], plain: PlainLoop, parameters: list[Parameter], batch: Batch) -> None:
    """SystemExit unless all loops have the same losses: else one of them does not do the same work."""
    loops: dict[str, Loop] = {**engines, "plain": plain}
    found = {}
    for name, loop in loops.items():
        with restored(parameters):
            loop.begin(parameters, LR)
            found[name] = [loop.step(batch) for _ in range(3)]
            loop.end()
    note(f"losses {found['plain']}")
    start, *_, end = found["plain"]
    if start == end or not all(
        torch.allclose(torch.tensor(each), torch.tensor(found["plain"]), 1e-3) for each in found.values()
    ):
        raise SystemExit(f"the loops do not train alike: no ratio means anything: {found}")


class restored:
    """Parameters have their values again afterwards."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters

    def __enter__(self) -> None:
        self._values = [parameter.detach().clone() for parameter in self._parameters]

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._values, strict=True):
                parameter.copy_(value)


def stepping(loop: Loop, parameters: list[Parameter], batch: Batch, num_steps: int) -> Callable[[], float]:
    """Seconds of a step, but for the first one after the switch to these parameters."""

    def measure() -> float:
        with restored(parameters):
            loop.begin(parameters, LR)
            loop.step(batch)
            start_s = time.process_time()
            for _ in range(num_steps - 1):
                loop.step(batch)
            seconds = (time.process_time() - start_s) / (num_steps - 1)
            loop.end()
        return seconds

    return measure


def peak_bytes(loop: Loop, parameters: list[Parameter], batch: Batch) -> int:
    """Of a step beside the model."""
    with restored(parameters):
        with TensorMemory() as memory:
            loop.begin(parameters, LR)
            loop.step(batch)
        loop.end()
    return memory.peak_bytes


def memory_vs_rule(model: PreTrainedModel, blocks: Mapping[str, list[Parameter]]) -> Iterator[Row]:
    """A bf16 model, whose block has fp32 masters."""
    batch = batch_of(RULE_TOKENS, model.config.vocab_size)
    engine = TorchEngine(model, SETTINGS)
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    for where, parameters in blocks.items():
        with TensorMemory() as memory:
            engine.begin(parameters, LR)
            engine.step(batch)
            taken = memory.alive_bytes
        engine.end()
        rule = model_bytes + 16 * sum(parameter.numel() for parameter in parameters)
        yield Row(f"engine/memory_vs_rule/{where}", rule / (model_bytes + taken), "x", spread=0.0)


def peft_steps(options: argparse.Namespace, batch: Batch) -> tuple[float, int]:
    """Median seconds of a step, and peak bytes of one, the model included."""
    note("Trainer with PEFT")
    base = load_model(options.model, "float32", seed=0)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    rows = [{name: values[row] for name, values in batch.items()} for row in range(len(batch["labels"]))]
    num_steps = options.turns * (options.steps - 1) + 1
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(rows),
            max_steps=num_steps,
            learning_rate=1e-4,
            max_grad_norm=0.0,
            optim="adamw_torch_fused",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        watch = StepWatch()
        Trainer(model=model, args=training, train_dataset=rows, callbacks=[watch]).train()
        seconds = sorted(watch.seconds[1:])
        training.max_steps = 1
        with TensorMemory() as memory:
            Trainer(model=model, args=training, train_dataset=rows).train()
    return seconds[len(seconds) // 2], model_bytes + memory.peak_bytes


class StepWatch(TrainerCallback):
    """Seconds of each step of a Trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start_s = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self._start_s)


if __name__ == "__main__":
    main()
