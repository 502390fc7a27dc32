"""Reports on answers that were shortened so that max_tokens could hold them complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dspy.lm15 import Adaptation

from adapter.errors import InvalidParameterError
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.grammar.gbnf.field_places import fields_at


@dataclass(frozen=True)
class Shortened:
    """What a response reports of it. Empty if the answer is as the model wanted it."""

    adaptations: tuple[Adaptation, ...] = ()
    provider_data: dict[str, Any] | None = None


def shortened(request: GenerationRequest, result: GenerationResult) -> Shortened:
    """What to report of a result.

    provider_data is for the end of a stream, which has no adaptations.
    """
    if request.constraint is None or not result.shortened:
        return Shortened()
    fields = fields_at(request.constraint.gbnf, result.shortened)
    if fields == []:
        return Shortened()  # only the space between fields
    what = "it" if fields is None else ", ".join(map(repr, fields))
    applied = {"shortened": fields if fields is not None else True}
    reason = f"{what} was ended early, so that the answer is complete"
    clamped = Adaptation("config.max_tokens", "clamped", reason, request.max_tokens, applied)
    return Shortened((clamped,), applied)


def too_few(max_tokens: int, fewest: int) -> InvalidParameterError:
    """The error for max_tokens that no answer fits."""
    return InvalidParameterError(
        "max_tokens",
        max_tokens,
        f"at least {fewest}, which the shortest answer of this form takes; or let answers be cut "
        'off with metadata={"llamacpp": {"complete_answers": False}}',
    )
