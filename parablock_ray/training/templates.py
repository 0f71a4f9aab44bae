"""How an example is written for the model: what stands before its answer."""

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from parablock_ray.config.data import PLACEHOLDER
from parablock_ray.errors import UserError
from parablock_ray.training.rows import Example

# The wording of Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca (Apache-2.0).
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def prompt_text(example: Example, template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before the answer. `template` as in `data.template`.

    All but `chat` put the turns of a conversation line by line. Raises UserError for a tokenizer without a chat
    template or one that refuses the turns, and where a template of the user's own has no place for an `input`.
    """
    instruction = "\n".join(message.content for message in example.messages)
    match template:
        case "plain":
            return f"{instruction}\n{example.input}\n" if example.input else f"{instruction}\n"
        case "alpaca":
            return _filled(ALPACA_WITH_INPUT if example.input else ALPACA, instruction, example.input)
        case "chat":
            return _chat(example, tokenizer)
    if example.input and "{input}" not in template:
        raise UserError(
            "data.template: it has no {input}, but there are examples with an `input`, which the model would not see; "
            "add {input}, or name the columns without it (data.columns)"
        )
    return _filled(template, instruction, example.input)


def _filled(template: str, instruction: str, extra: str) -> str:
    fields = {"instruction": instruction, "input": extra}
    return PLACEHOLDER.sub(lambda placeholder: fields[placeholder[1]], template)


def _chat(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        raise UserError("data.template: chat needs a tokenizer with a chat template; use plain or alpaca")
    turns = [{"role": message.role, "content": message.content} for message in example.messages]
    if example.input:
        turns[-1]["content"] += f"\n\n{example.input}"
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(message.role for message in example.messages)
        raise UserError(
            f"data.template: the model's chat template refuses turns by {roles}: {error}; use plain or alpaca"
        ) from error
