"""Measure a program with many threads: python examples/batch_evaluation.py [MODEL.gguf]

The requests of all threads are computed together, and what their prompts share is computed once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

import dspy

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool, embedded_model

REVIEWS = [
    ("I loved every minute of it.", "positive"),
    ("A waste of time and money.", "negative"),
    ("Wonderful and moving.", "positive"),
    ("I want my money back.", "negative"),
    ("The best film of the year.", "positive"),
    ("Dull from start to end.", "negative"),
    ("It broke on the second day.", "negative"),
    ("Great sound, and easy to use.", "positive"),
    ("Nobody should have to sit through this.", "negative"),
    ("I will buy it again.", "positive"),
]


class Review(dspy.Signature):
    """Is a review positive or negative?"""

    text: str = dspy.InputField()
    mood: Literal["positive", "negative"] = dspy.OutputField()


def same_mood(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(example.mood == prediction.mood)


def main(model: Path) -> None:
    examples = [dspy.Example(text=text, mood=mood).with_inputs("text") for text, mood in REVIEWS]
    program = dspy.Predict(Review)
    with ModelPool(model.parent) as pool:
        loaded = pool.load_model(model.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=20, temperature=0.0)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        evaluate = dspy.Evaluate(
            devset=examples, metric=same_mood, num_threads=16, display_progress=False
        )
        began = time.perf_counter()
        with dspy.context(lm=adapter.lm, adapter=adapter):
            found = evaluate(program)
        seconds = time.perf_counter() - began
        metrics = pool.metrics()[loaded.name]
    for example, prediction, right in found.results:
        if not right:
            print(f"wrong: {example.text!r} is {example.mood}, not {prediction.mood}")
    print(f"{found.score} % right, {len(examples) / seconds:.1f} requests/s")
    n_tokens = metrics.cached_tokens + metrics.prompt_tokens
    print(f"{metrics.cached_tokens} of {n_tokens} prompt tokens were shared, not computed again")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else embedded_model.fetch())
