"""Reports on answers that were shortened: by max_tokens, or because they repeated themselves."""

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


_AS_WANTED = Shortened()


def shortened(request: GenerationRequest, result: GenerationResult) -> Shortened:
    """What to report of a result.

    provider_data is for the end of a stream, which has no adaptations.
    """
    if request.constraint is None or not (result.shortened or result.repeated):
        return _AS_WANTED
    gbnf = request.constraint.gbnf
    adaptations = []
    provider_data: dict[str, Any] = {}
    for key, path, requested, places, why in (
        (
            "shortened",
            "config.max_tokens",
            request.max_tokens,
            result.shortened,
            "was ended early, so that the answer is complete",
        ),
        (
            "repeated",
            "metadata['llamacpp']['end_repetitions']",
            True,
            result.repeated,
            "was ended, because it repeated itself",
        ),
    ):
        fields = fields_at(gbnf, places) if places else []
        if fields == []:
            continue  # nowhere, or only in the space between fields
        what = "it" if fields is None else ", ".join(map(repr, fields))
        applied = {key: True if fields is None else fields}
        adaptations.append(Adaptation(path, "clamped", f"{what} {why}", requested, applied))
        provider_data |= applied
    return Shortened(tuple(adaptations), provider_data or None)


def too_few(max_tokens: int, fewest: int) -> InvalidParameterError:
    """The error for max_tokens that no answer fits."""
    return InvalidParameterError(
        "max_tokens",
        max_tokens,
        f"at least {fewest}, which the shortest answer of this form takes; or let answers be cut "
        'off with metadata={"llamacpp": {"complete_answers": False}}',
    )
