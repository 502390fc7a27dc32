"""Shortens prompts that list so many values of a type that no room is left for an answer.

The grammar allows all values, so a model need not read each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from dspy.adapters.utils import get_annotation_name
from dspy.clients.base_lm import BaseLM
from dspy.signatures import Signature
from dspy.utils.exceptions import ContextWindowExceededError

from adapter.signatures.formatting import MAX_LISTED, is_shortened, long_lists, shortened_lists
from adapter.signatures.one_body import Answers, Ask, blocking, completed
from adapter.signatures.typed_values import allowed_values

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from dspy.adapters import Adapter as _Adapter
else:  # a mixin for DSPy's classes, not an adapter by itself
    _Adapter = object


@contextmanager
def _shortened(signature: type[Signature], error: ContextWindowExceededError) -> Iterator[None]:
    """Name only some of the values of long lists, and log it. Raise the error if there are none.

    The grammar allows all values.
    """
    fields = long_lists(signature)
    if not fields:
        raise error
    logger.warning(
        "the prompt names %d values of each of the outputs %s only, and the grammar all of them: "
        "with all in the prompt, %s",
        *(MAX_LISTED, ", ".join(map(repr, fields)), str(error).partition("\n")[0]),
    )
    with shortened_lists():
        yield


class ShortenedLists(_Adapter):
    """A mixin for DSPy's classes with constrained answers: a prompt that is too long lists less."""

    def __call__(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> Answers:
        """Let the adapter work. If the prompt is too long, again with fewer values in it."""
        ask = blocking(super().__call__)
        return completed(_fitting(ask, lm, lm_kwargs, signature, demos, inputs))

    async def acall(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> Answers:
        """Do the same without blocking the event loop."""
        return await _fitting(super().acall, lm, lm_kwargs, signature, demos, inputs)

    def format(
        self,
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Return the messages, with fewer values in the first and the last while lists are short.

        These two say what the answer must be. The others are demonstrations.
        """
        messages: list[dict[str, Any]] = super().format(signature, demos, inputs)
        if is_shortened():
            for message in {id(each): each for each in (messages[0], messages[-1])}.values():
                if isinstance(message["content"], str):
                    message["content"] = _shorter(message["content"], signature)
        return messages


async def _fitting(
    ask: Ask, lm: BaseLM, lm_kwargs: dict[str, Any], signature: type[Signature], *call: Any
) -> Answers:
    try:
        answers: Answers = await ask(lm, dict(lm_kwargs), signature, *call)
    except ContextWindowExceededError as error:
        with _shortened(signature, error):
            answers = await ask(lm, lm_kwargs, signature, *call)
    return answers


def _shorter(text: str, signature: type[Signature]) -> str:
    """A text of DSPy's with long lists of an output's values cut to MAX_LISTED."""
    for field in signature.output_fields.values():
        for values in _lists(field.annotation):
            few = [values[index * len(values) // MAX_LISTED] for index in range(MAX_LISTED)]
            rest = f"… ({len(values)} in all)"
            for write, separator in _LISTINGS:
                text = text.replace(write(values), f"{write(few)}{separator}{rest}")
    return text


def _lists(annotation: Any) -> Iterator[list[Any]]:
    values = allowed_values(annotation)
    if len(values) > MAX_LISTED:
        yield values
    for part in () if values else get_args(annotation):
        yield from _lists(part)


def _as_annotation(values: list[Any]) -> str:
    return str(get_annotation_name(Literal[tuple(values)])).partition("[")[2].removesuffix("]")


def _as_json(values: list[Any]) -> str:
    return json.dumps(values, ensure_ascii=False, default=str)[1:-1]


_LISTINGS: list[tuple[Callable[[list[Any]], str], str]] = [
    (lambda values: "; ".join(map(str, values)), "; "),
    (_as_annotation, ", "),
    (_as_json, ", "),
    (lambda values: json.dumps(_as_json(values), ensure_ascii=False)[1:-1], ", "),
]
"""How DSPy writes the values of a type: in a note, as a Python type, in a JSON schema, and in one
inside a JSON string.
"""
