"""The demo: a question to a small model."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from adapter.cli.console import fail, progress_bar, refuse, require_text, say


def demo(
    question: Annotated[str, typer.Argument(help="What to ask the embedded model.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 2, help="The same seed gives the same answer.")
    ] = 0,
) -> None:
    """Ask a small embedded model a question, through dspy.Predict."""
    # Heavy packages are imported where they are used, so that --help answers at once.
    import dspy
    from dspy.utils.exceptions import DSPyError

    from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool
    from adapter.errors import LlamaCppError
    from adapter.models import embedded_model

    require_text("the question", question)
    if not question.strip():
        refuse("the question is empty; ask something, such as: pyllama demo 'What is DSPy?'")
    try:
        path = embedded_model.fetch()
        with progress_bar(f"Loading {path.stem}") as report:
            pool = ModelPool(path.parent, progress=lambda _name, done: report(done))
            loaded = pool.load_model(path.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=max_tokens, temperature=0.0, seed=seed)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        with pool, dspy.context(lm=adapter.lm, adapter=adapter, track_usage=True):
            # DSPy would answer a repeated question from its cache, and nothing would be measured.
            ask = dspy.Predict("question -> answer", cache=False)
            began = time.perf_counter()
            prediction = ask(question=question)
            seconds = time.perf_counter() - began
        usage = prediction.get_lm_usage()[adapter.lm.model]
    except (embedded_model.EmbeddedModelError, LlamaCppError, DSPyError) as error:
        fail(str(error))
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    say(prediction.answer)
    say("")
    say(f"prompt tokens:     {prompt}")
    say(f"completion tokens: {completion}")
    say(f"tokens/s:          {(prompt + completion) / seconds:.1f}")
    say(f"device:            {loaded.device}")
