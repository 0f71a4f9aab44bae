"""How fast answers are made for an evaluation: tokens a second, greedy, by batch size.

    python benchmarks/generation.py --json

Every answer is made as long as `--max-new-tokens` or ends sooner by itself; its tokens count, an end mark included.
"""

import time

import torch
from harness import Row, note, parser, report

from parablock_ray.evaluation.generate import generate
from parablock_ray.training.model import load_model, load_tokenizer
from parablock_ray.training.rows import Example, Message
from parablock_ray.training.templates import prompt_text


def main() -> None:
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--model", default="smollm2-135m-instruct", help="as in model.name, with a chat template")
    options.add_argument("--threads", type=int, default=1, help="of torch")
    options.add_argument("--max-new-tokens", type=int, default=32)
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 32])
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    model, tokenizer = load_model(asked.model, "float32", seed=0), load_tokenizer(asked.model)
    questions = [f"Tell me a long story about the number {number}." for number in range(max(asked.batch_sizes))]
    examples = [
        Example((Message("user", question),), input="", answer="", task="", client=None) for question in questions
    ]
    prompts = [prompt_text(example, "chat", tokenizer) for example in examples]
    rows = []
    for batch_size in asked.batch_sizes:
        start_s = time.perf_counter()
        answers = generate(model, tokenizer, prompts[:batch_size], asked.max_new_tokens, batch_size)
        rate = sum(answer.num_tokens for answer in answers) / (time.perf_counter() - start_s)
        note(f"batch size {batch_size}: {rate:.1f} tokens/s")
        rows.append(Row(f"batch size {batch_size}", rate, "tokens/s"))
    report(rows, asked.json)


if __name__ == "__main__":
    main()
