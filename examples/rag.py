"""Answer questions from your own documents: python examples/rag.py [MODEL.gguf]

One model does both jobs here. Use an embedding model for the search if you have one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dspy

from adapter import LlamaCppAdapter, LlamaCppConfig, LlamaCppEmbedder, ModelPool, embedded_model

DOCUMENTS = [
    "The office is open from 8 to 18 o'clock.",
    "The printer is on the second floor, beside the kitchen.",
    "Holidays are requested by e-mail, two weeks ahead.",
    "Cats are not allowed in the office.",
]
QUESTIONS = ["Where is the printer?", "Are cats allowed?"]


class AnswerFrom(dspy.Signature):
    """Answer from the context."""

    context: list[str] = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Rag(dspy.Module):
    """Search, then answer."""

    def __init__(self, search: dspy.retrievers.Embeddings) -> None:
        super().__init__()
        self.search = search
        self.answer = dspy.Predict(AnswerFrom)

    def forward(self, question: str) -> dspy.Prediction:
        passages = self.search(question).passages
        return self.answer(context=passages, question=question)


def main(model: Path) -> None:
    with ModelPool(model.parent) as pool:
        loaded = pool.load_model(model.stem)
        # An embedding model's file says how it pools, and needs no pooling here.
        embedder = dspy.Embedder(LlamaCppEmbedder(loaded, pooling="mean"))
        search = dspy.retrievers.Embeddings(corpus=DOCUMENTS, embedder=embedder, k=2)
        config = LlamaCppConfig(loaded.name, max_tokens=40, temperature=0.0)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        rag = Rag(search)
        with dspy.context(lm=adapter.lm, adapter=adapter):
            for question in QUESTIONS:
                print(f"{question} {rag(question=question).answer}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else embedded_model.fetch())
