"""Measured probabilities: what a choice costs, and how right and how sure it is.

    pip install chatterbot-corpus
    python benchmarks/judgment.py [--items 10] [--rounds 5]

**Cost**: a choice among the names of 20 topics, beside the least that it could cost: its prompt,
computed in the same blocks, and one step that decodes a token of each of 20 sequences. Both are
measured in turns with prompts that nothing remembers; figures are medians of the rounds.

**Accuracy and calibration**: short lines of four topics of the chatterbot corpus (BSD-licensed;
texts with their topic, in the package chatterbot-corpus), with one example of each topic in the
prompt. Three ways to the same Choice: LlamaCppAdapter measures it; dspy.JSONAdapter has the model
write the probabilities itself, under the schema, greedily; and LlamaCppAdapter has the model write
the topic alone, greedily. ECE is the expected calibration error: with the items in ten equal bins
of the probability p of the answer given, the mean over items of
|share of right answers in its bin - mean p of its bin|.
An answer that does not parse counts as wrong, and for ECE as p = 0.

Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, Literal, NamedTuple

import dspy
import numpy as np
import yaml
from dspy.experimental import Choice
from dspy.utils.exceptions import AdapterParseError

import pyllama
from adapter import LlamaCppAdapter, LlamaCppConfig, LoadedModel, ModelPool
from adapter.generation.memory.blocks import CHUNK
from adapter.generation.prefill import prompt_steps
from adapter.generation.scoring import ScoringRequest, scoring_context
from adapter.models import embedded_model

TOPICS = ("coding", "literature", "money", "sports")
TWENTY = (
    "ai", "botprofile", "coding", "computers", "conversations", "emotion", "food", "gossip",
    "greetings", "health", "history", "humor", "literature", "money", "movies", "politics",
    "psychology", "science", "sports", "trivia",
)  # fmt: skip
INSTRUCTIONS = "Say which topic the line belongs to."


class Item(NamedTuple):
    """A line, and the topic it stands under."""

    line: str
    topic: str


class Answer(NamedTuple):
    """A topic, and how probable it was said to be; None where the way gives no probabilities."""

    topic: str | None
    probability: float | None


def main() -> None:
    """Measure and print the tables."""
    arguments = parse_arguments()
    path = embedded_model.fetch()
    with ModelPool(path.parent, context_length=2048) as pool:
        loaded = pool.load_model(path.stem)
        print(f"machine: {loaded.device}, {platform.platform()}, {pyllama.llama_cpp_version()}")
        print(cost(loaded, arguments.rounds))
        print(calibration(loaded, arguments.items))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=10, help="lines of each topic")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the cost")
    return parser.parse_args()


def cost(loaded: LoadedModel, rounds: int) -> str:
    """Measure a choice among 20, beside its prompt and one step of 20 sequences."""
    keys = [loaded.tokenize(f"topic: {key}") for key in TWENTY]
    stem = len(loaded.tokenize("topic:"))
    continuations = tuple(tuple(key[stem:]) for key in keys)
    lines = "\n".join(f"A line about {topic}, one of many." for topic in TWENTY * 3)
    base = tuple(loaded.tokenize(f"{INSTRUCTIONS}\n{lines}\ntopic:"))
    with loaded.lease() as model:
        params = pyllama.ContextParams(n_threads=pyllama.cpu_math_cores(), flash_attn="disabled")
        with scoring_context(model, params, 1024, chunk=CHUNK) as context:
            generator = loaded.generators["batched"]
            # Ends, contexts and kernels are made before the first round.
            generator.score(ScoringRequest(base, continuations, loaded.turn_ends))
            least, whole, again = [], [], []
            for number in range(2 * rounds):
                prompt = (number + 300, *base)  # another first token: nothing is remembered
                request = ScoringRequest(prompt, continuations, loaded.turn_ends)
                if number % 2:
                    least.append(seconds(lambda prompt=prompt: prompt_and_step(context, prompt)))
                else:
                    whole.append(seconds(lambda request=request: generator.score(request)))
                    again.append(seconds(lambda request=request: generator.score(request)))
    bound, taken, cached = (statistics.median(values) for values in (least, whole, again))
    n_tokens = len({key[:end] for key in continuations for end in range(1, len(key) + 1)})
    return "\n".join(
        [
            f"\n20 keys of {n_tokens} tokens after a prompt of {len(base) + 1}:",
            "| | seconds |",
            "|---|---|",
            f"| the prompt and one step of 20 sequences | {bound:.3f} |",
            f"| the choice | {taken:.3f} |",
            f"| ratio (goal: ≤ 1.3) | {taken / bound:.2f} |",
            f"| the choice, asked again | {cached:.3f} |",
        ]
    )


def prompt_and_step(context: pyllama.Context, prompt: tuple[int, ...]) -> None:
    """Compute a prompt, and then one token of each of 20 sequences that go on from it."""
    context.memory.clear(data=False)
    for _ in prompt_steps(context, prompt):
        pass
    batch = pyllama.Batch(CHUNK)
    for seq_id in range(1, 21):
        context.memory.seq_cp(0, seq_id)
        batch.add(seq_id + 300, len(prompt), (seq_id,), output=True)
    context.decode(batch)
    context.all_logits()


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def calibration(loaded: LoadedModel, n_items: int) -> str:
    """Judge the lines in three ways; return the table."""
    examples, items = corpus(n_items)
    kind = Choice[tuple((topic, None) for topic in TOPICS)]  # type: ignore[misc,valid-type]
    field = dspy.OutputField(desc="the topic of the line")
    judged = dspy.Signature({"line": (str, dspy.InputField()), "topic": (kind, field)})
    literal = Literal[TOPICS]  # type: ignore[valid-type]
    written = dspy.Signature({"line": (str, dspy.InputField()), "topic": (literal, field)})
    config = LlamaCppConfig(loaded.name, temperature=0.0, max_tokens=160, enable_cache=False)
    own = LlamaCppAdapter.from_loaded_model(loaded, config)
    rows = [
        "\n| way | accuracy | ECE | mean p | did not parse | s per line |",
        "|---|---|---|---|---|---|",
    ]
    for title, adapter, signature in (
        ("measured (LlamaCppAdapter)", own, judged),
        ("numbers written by the model (dspy.JSONAdapter)", dspy.JSONAdapter(), judged),
        ("topic written by the model (LlamaCppAdapter)", own, written),
    ):
        predict = dspy.Predict(signature.with_instructions(INSTRUCTIONS))
        predict.demos = [item._asdict() for item in examples]
        with dspy.context(lm=own.lm, adapter=adapter):
            begin = time.perf_counter()
            answers = [answer(predict, item.line) for item in items]
            taken = (time.perf_counter() - begin) / len(items)
        rows.append(f"| {title} | {scores(items, answers)} | {taken:.2f} |")
    return f"\n{len(items)} lines of {len(TOPICS)} topics:\n" + "\n".join(rows)


def corpus(n_items: int) -> tuple[list[Item], list[Item]]:
    """One example of each topic, and so many other lines of each."""
    folder = resources.files("chatterbot_corpus") / "data" / "english"
    examples, items = [], []
    for topic in TOPICS:
        content = yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))
        lines = list(dict.fromkeys(str(one[0]).strip() for one in content["conversations"]))
        chosen = np.random.default_rng(0).permutation(len(lines))[: n_items + 1]
        first, *others = [Item(lines[index], topic) for index in chosen]
        examples.append(first)
        items += others
    return examples, items


def answer(predict: dspy.Predict, line: str) -> Answer:
    """Ask for the topic of a line."""
    try:
        topic: Any = predict(line=line).topic
    except (AdapterParseError, ValueError):
        return Answer(None, 0.0)
    if isinstance(topic, str):
        return Answer(topic, None)
    total = sum(topic.probabilities.values())
    return Answer(topic.value, topic.probabilities[topic.value] / total)


def scores(items: list[Item], answers: list[Answer]) -> str:
    """Accuracy, ECE, mean probability of the answer given, and answers that did not parse."""
    right = np.array([one.topic == item.topic for one, item in zip(answers, items, strict=True)])
    failed = sum(one.topic is None for one in answers)
    told = [one.probability for one in answers]
    if any(p is None for p in told):
        return f"{right.mean():.2f} | | | {failed}"
    p = np.array(told, dtype=float)
    bins = np.minimum((p * 10).astype(int), 9)
    ece = sum(
        (bins == bin_).mean() * abs(right[bins == bin_].mean() - p[bins == bin_].mean())
        for bin_ in np.unique(bins)
    )
    return f"{right.mean():.2f} | {ece:.2f} | {p.mean():.2f} | {failed}"


if __name__ == "__main__":
    main()
