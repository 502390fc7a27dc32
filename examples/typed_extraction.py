"""Turn e-mails into typed records: python examples/typed_extraction.py [MODEL.gguf]"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Literal

import dspy
import pydantic

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool, embedded_model

EMAILS = [
    "Hello, we need 12 chairs on 2026-06-09. We pay in dollars.",
    "Please deliver 2 desks by 2026-03-01, invoice in EUR.",
]


class Order(pydantic.BaseModel):
    product: str = pydantic.Field(max_length=40)
    quantity: int = pydantic.Field(ge=1, le=1000)
    currency: Literal["EUR", "USD"]


class ReadOrder(dspy.Signature):
    """Read the order in an e-mail."""

    email: str = dspy.InputField()
    order: Order = dspy.OutputField()
    due: date = dspy.OutputField(desc="The day by which it is needed")


def main(model: Path) -> None:
    read = dspy.Predict(ReadOrder)
    # A small model needs to see the task done. A large one needs no demonstrations.
    read.demos = [
        dspy.Example(
            email="Please send 3 lamps by 2026-05-02. We pay in euros.",
            order=Order(product="lamp", quantity=3, currency="EUR"),
            due=date(2026, 5, 2),
        ),
        dspy.Example(
            email="On 2026-10-17 we need 40 cups. We pay in dollars.",
            order=Order(product="cup", quantity=40, currency="USD"),
            due=date(2026, 10, 17),
        ),
    ]
    with ModelPool(model.parent) as pool:
        loaded = pool.load_model(model.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=80, temperature=0.0)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        with dspy.context(lm=adapter.lm, adapter=adapter):
            calls = [dspy.Example(email=email).with_inputs("email") for email in EMAILS]
            found = read.batch(calls, num_threads=8, disable_progress_bar=True)
    for each in found:
        print(each.due, each.order.model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else embedded_model.fetch())
