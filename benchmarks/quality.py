r"""How good the answers of small models are: each adapter, on tasks whose answers are known.

    python benchmarks/quality.py [--models FOLDER] [--data FOLDER] [--out quality.json]

Every task is answered greedily, one call after the other and with DSPy's cache off, by each
adapter with 0, 1 and 5 demonstrations. quality_tasks.py says what the tasks are.
quality_held_out.py has tasks that no prompt and no grammar was chosen by. `--data` is a folder of
public data, which adds the tasks of quality_data.py. Those of quality_drawn.py have as many
questions as `--questions` asks for, and others with another `--seed`. `--models` is a folder of
GGUF files; without it, the embedded model answers.

The rows are independent: `--shard 2/8` measures the third of eight parts, in a process that may
have cores of its own, and `--table quality-*.json` prints what all of them found:

    for i in 0 1 2 3 4 5 6 7; do
        taskset -c $((2 * i)),$((2 * i + 1)) python benchmarks/quality.py \
            --shard $i/8 --out quality-$i.json &
    done; wait
    python benchmarks/quality.py --table quality-*.json

    right     outputs that are right, of all that are wanted
    answered  questions that came back with all outputs
    cut       questions with a response that max_tokens ended
    tokens    of the prompts, and of the responses
    s         the seconds that all questions took

`--table` also prints how far LlamaCppAdapter is ahead of each other adapter: in right outputs of a
question, with the 95 % interval of the mean. Both were asked the same questions.

With `--rounds` the seconds are medians. The JSON file has every row, and each answer with `--keep`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dspy
from dspy.adapters import Adapter
from dspy.adapters.baml_adapter import BAMLAdapter
from quality_data import from_folder
from quality_drawn import drawn
from quality_held_out import held_out
from quality_tasks import Task, made_here

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool, constrained
from adapter.models import embedded_model

ADAPTERS: dict[str, Callable[[dspy.LM], Adapter]] = {
    "LlamaCppAdapter": LlamaCppAdapter,
    "constrained Chat": lambda _: constrained(dspy.ChatAdapter()),
    "ChatAdapter": lambda _: dspy.ChatAdapter(),
    "constrained JSON": lambda _: constrained(dspy.JSONAdapter()),
    "JSONAdapter": lambda _: dspy.JSONAdapter(),
    "constrained XML": lambda _: constrained(dspy.XMLAdapter()),
    "constrained BAML": lambda _: constrained(BAMLAdapter()),
}
MAX_TOKENS = 256
CONTEXT_LENGTH = 8192
HEAD = "| task | demos | adapter | right | answered | cut | tokens in, out | s | t/s |"
RULE = "| --- | --: | --- | --: | --: | --: | --: | --: | --: |"
LEAD_HEAD = "| task | demos | LlamaCppAdapter and | ahead by | 95 % interval |"
LEAD_RULE = "| --- | --: | --- | --: | --: |"


@dataclass
class Row:
    """What became of one task, with one adapter and number of demonstrations."""

    model: str
    task: str
    demos: int
    adapter: str
    questions: int = 0
    answered: int = 0
    right: int = 0
    wanted: int = 0
    cut: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    rights: list[int] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def line(self) -> str:
        """The row of the table."""
        seconds = statistics.median(self.seconds)
        return (
            f"| {self.task} | {self.demos} | {self.adapter} | {self.right}/{self.wanted} "
            f"| {self.answered}/{self.questions} | {self.cut} "
            f"| {self.prompt_tokens}, {self.completion_tokens} | {seconds:.1f} "
            f"| {self.completion_tokens / seconds if seconds else 0:.0f} |"
        )


def measure(lm: dspy.LM, task: Task, row: Row, questions: list[dict[str, Any]]) -> None:
    """Ask all questions once. What is counted is that of the last round."""
    module = task.module(row.demos)
    row.questions, row.rights, row.answers = len(questions), [], []
    row.answered = row.right = row.wanted = row.cut = row.calls = 0
    row.prompt_tokens = row.completion_tokens = 0
    seconds = 0.0
    for question in questions:
        lm.history.clear()
        start = time.perf_counter()
        try:
            prediction: Any = module(**task.inputs(question))
        except Exception as error:  # counted as unanswered, whatever it is
            prediction, told = None, f"{type(error).__name__}: {error}"
        else:
            told = {name: str(prediction[name]) for name in task.signature.output_fields}
            row.answered += 1
        seconds += time.perf_counter() - start
        right, wanted = task.right(question, prediction)
        row.right += right
        row.rights.append(right)
        row.wanted += wanted
        row.calls += len(lm.history)
        texts = []
        for entry in lm.history:
            texts.append([str(output) for output in entry["outputs"]])
            row.prompt_tokens += entry["usage"]["prompt_tokens"]
            row.completion_tokens += entry["usage"]["completion_tokens"]
        ends = [getattr(entry["response"], "finish_reason", None) for entry in lm.history]
        row.cut += "length" in ends
        row.answers.append({"right": right, "answer": told, "texts": texts})
    row.seconds.append(round(seconds, 3))


def main() -> None:
    """Measure, and print a table for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, help="folder of GGUF files")
    parser.add_argument("--only", help="a part of the names of the models to measure", default="")
    parser.add_argument("--data", type=Path, help="folder of public data")
    parser.add_argument("--seed", type=int, default=0, help="of the questions drawn")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--tasks", nargs="+", help="names of tasks")
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=[*ADAPTERS])
    parser.add_argument("--demos", nargs="+", type=int, choices=range(6), default=[0, 1, 5])
    parser.add_argument("--questions", type=int, default=12, help="of each task")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write the answers to the JSON file")
    parser.add_argument("--shard", type=shard, default=(0, 1), help="I/N: the part to measure")
    parser.add_argument("--table", nargs="+", type=Path, help="print the rows of these JSON files")
    arguments = parser.parse_args()
    if arguments.table:
        print_table([row for path in arguments.table for row in read(path)])
        return
    tasks = made_here() + held_out() + drawn(arguments.questions, arguments.seed)
    if arguments.data:
        tasks += from_folder(arguments.data, arguments.questions)
    if arguments.tasks:
        unknown = {*arguments.tasks} - {task.name for task in tasks}
        if unknown:
            parser.error(f"no such tasks: {', '.join(sorted(unknown))}")
        tasks = [task for task in tasks if task.name in arguments.tasks]
    plan = [
        (task, demos, name)
        for task in tasks
        for demos in (arguments.demos if task.takes_demos else [0])
        for name in arguments.adapters
    ]
    index, count = arguments.shard
    if count > 1:
        random.Random(0).shuffle(plan)  # or one part would have all rows of the slowest adapter
    folder = arguments.models or embedded_model.fetch().parent
    logging.getLogger("dspy").setLevel(logging.ERROR)  # what is cut is counted
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    rows: list[Row] = []
    for path in sorted(folder.glob("*.gguf")):
        if arguments.only not in path.stem:
            continue
        with ModelPool(folder, context_length=CONTEXT_LENGTH) as pool:
            loaded = pool.load_model(path.stem)
            print(f"\n**{path.stem}** on {loaded.device}\n\n{HEAD}\n{RULE}", flush=True)
            config = LlamaCppConfig(loaded.name, max_tokens=MAX_TOKENS, temperature=0.0, seed=0)
            lm = LlamaCppAdapter.from_loaded_model(loaded, config).lm
            for task, demos, name in plan[index::count]:
                row = Row(path.stem, task.name, demos, name)
                with dspy.context(lm=lm, adapter=ADAPTERS[name](lm)):
                    questions = task.asked()[: arguments.questions]
                    for _ in range(arguments.rounds):
                        measure(lm, task, row, questions)
                print(row.line(), flush=True)
                rows.append(row)
                if arguments.out:
                    write(arguments.out, rows, keep=arguments.keep)


def shard(text: str) -> tuple[int, int]:
    """Which part of how many, of a text like 2/8."""
    index, count = map(int, text.split("/"))
    if not 0 <= index < count:
        raise ValueError(text)
    return index, count


def read(path: Path) -> list[Row]:
    """The rows of a JSON file."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def print_table(rows: list[Row]) -> None:
    """All rows, by model, task and number of demonstrations."""
    names = [*ADAPTERS]
    for model in sorted({row.model for row in rows}):
        print(f"\n**{model}**\n\n{HEAD}\n{RULE}")
        of_model = [row for row in rows if row.model == model]
        of_model.sort(key=lambda row: (row.task, row.demos, names.index(row.adapter)))
        for row in of_model:
            print(row.line())
        print(f"\n{LEAD_HEAD}\n{LEAD_RULE}")
        for row in of_model:
            own = [one for one in of_model if _is_own(one) and _asked(one) == _asked(row)]
            if own and not _is_own(row) and len(row.rights) > 1:
                print(f"| {row.task} | {row.demos} | {row.adapter} | {lead(own[0], row)} |")


def _is_own(row: Row) -> bool:
    return row.adapter == "LlamaCppAdapter"


def _asked(row: Row) -> tuple[str, int, int]:
    return row.task, row.demos, len(row.rights)


def lead(own: Row, other: Row) -> str:
    """How many more outputs of a question are right, and the 95 % interval of that mean."""
    more = [a - b for a, b in zip(own.rights, other.rights, strict=True)]
    mean = statistics.mean(more)
    margin = 1.96 * statistics.stdev(more) / math.sqrt(len(more))
    return f"{mean:+.3f} | {mean - margin:+.3f} to {mean + margin:+.3f}"


def write(path: Path, rows: list[Row], *, keep: bool) -> None:
    """All rows so far as JSON."""
    made = [asdict(row) for row in rows]
    for row in made:
        if not keep:
            del row["answers"]
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
