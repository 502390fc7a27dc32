"""An agent with two tools: python examples/react_agent.py [MODEL.gguf]

Each call has a tool's name and arguments that fit it, whatever the model. Whether the call is the
right one depends on the model: this small one is shown two examples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import dspy

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool, embedded_model


def price(product: str) -> int:
    """The price of a product in euros."""
    return {"lamp": 20, "chair": 80}.get(product, 0)


def stock(product: str) -> int:
    """How many of a product are in stock."""
    return {"lamp": 7, "desk": 3}.get(product, 0)


def steps(question: str, tool: str, product: str, observation: int) -> Iterator[dspy.Example]:
    """How a question is answered: one call, then the end."""
    arguments = {"product": product}
    yield dspy.Example(
        question=question,
        trajectory="",
        next_thought=f"Use {tool}.",
        next_tool_name=tool,
        next_tool_args=arguments,
    )
    called = f"thought_0: Use {tool}.\ntool_name_0: {tool}\ntool_args_0: {json.dumps(arguments)}"
    yield dspy.Example(
        question=question,
        trajectory=f"{called}\nobservation_0: {observation}",
        next_thought="That is the answer.",
        next_tool_name="finish",
        next_tool_args={},
    )


def main(model: Path) -> None:
    chairs = [*steps("What does a chair cost?", "price", "chair", 80)]
    desks = [*steps("How many desks are in stock?", "stock", "desk", 3)]
    agent = dspy.ReAct("question -> answer: int", tools=[price, stock], max_iters=3)
    agent.react.demos = chairs + desks
    agent.extract.predict.demos = [
        dspy.Example(**chairs[1].toDict(), reasoning="The price is 80.", answer=80)
    ]
    with ModelPool(model.parent) as pool:
        loaded = pool.load_model(model.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=100, temperature=0.0)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        with dspy.context(lm=adapter.lm, adapter=adapter):
            found = agent(question="What does a lamp cost?")
    for name, value in found.trajectory.items():
        print(f"{name}: {value}")
    print("answer:", found.answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else embedded_model.fetch())
