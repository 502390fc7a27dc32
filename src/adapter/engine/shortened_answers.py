"""What is told of an answer that was shortened so that max_tokens could hold it whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dspy.lm15 import Adaptation

from adapter.errors import InvalidParameterError
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.grammar.gbnf.field_places import fields_at


@dataclass(frozen=True)
class Shortened:
    """What a response says of it: nothing where an answer is as the model wanted it."""

    adaptations: tuple[Adaptation, ...] = ()
    provider_data: dict[str, Any] | None = None


def shortened(request: GenerationRequest, result: GenerationResult) -> Shortened:
    """What to tell of a result.

    provider_data is what the end of a stream can carry, which has no adaptations.
    """
    if request.constraint is None or not result.shortened:
        return Shortened()
    fields = fields_at(request.constraint.gbnf, result.shortened)
    if fields == []:
        return Shortened()  # space between fields, no more
    what = "it" if fields is None else ", ".join(map(repr, fields))
    applied = {"shortened": fields if fields is not None else True}
    reason = f"{what} was ended early, so that the answer is complete"
    told = Adaptation("config.max_tokens", "clamped", reason, request.max_tokens, applied)
    return Shortened((told,), applied)


def too_few(max_tokens: int, fewest: int) -> InvalidParameterError:
    """What is raised for max_tokens that no answer fits."""
    return InvalidParameterError(
        "max_tokens",
        max_tokens,
        f"at least {fewest}, which the shortest answer of this form takes; or let answers be cut "
        'off with metadata={"llamacpp": {"complete_answers": False}}',
    )
