"""DSPy's own adapters, with answers that cannot fail to parse."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any, TypeVar

import pydantic
from dspy.adapters import Adapter, ChatAdapter, JSONAdapter, XMLAdapter
from dspy.signatures import Signature
from dspy.utils.exceptions import AdapterParseError

from adapter.errors import ConfigurationError
from adapter.signatures.answer_grammar import CHAT, JSON, XML
from adapter.signatures.bound_answers import BoundAnswers
from adapter.signatures.long_lists import ShortenedLists
from adapter.signatures.typed_values import MISFITS

AnyAdapter = TypeVar("AnyAdapter", bound=Adapter)


class _ExactStrings:
    """A mixin for JSONAdapter: it parses strings in JSON again, as JSON of their own.

    If that changes the value, such as the number 9 for "9", the string is kept.
    """

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        parent: Any = super()
        try:
            read: dict[str, Any] = parent.parse(signature, completion)
        except AdapterParseError:
            try:
                values = json.loads(completion)
                return {
                    name: pydantic.TypeAdapter(field.annotation).validate_python(values[name])
                    for name, field in signature.output_fields.items()
                }
            except (*MISFITS, KeyError):
                pass  # report the first error
            raise
        return read


def constrained(adapter: AnyAdapter) -> AnyAdapter:
    """A copy of one of DSPy's adapters whose answers always parse with a model of this package.

    ::

        dspy.configure(lm=…, adapter=constrained(dspy.ChatAdapter()))

    The copy is of the same class, and treats every other lm as the original does.

    Args:
        adapter: an adapter with the form of ChatAdapter, JSONAdapter, BAMLAdapter or XMLAdapter.

    Raises:
        ConfigurationError: the adapter has another form.
    """
    made = copy.copy(adapter)
    kind: Any = type(adapter)
    made.__class__ = _bound_class(kind)
    return made


@cache
def _bound_class(kind: type[Adapter]) -> type[Adapter]:
    forms = {XMLAdapter: XML, JSONAdapter: JSON, ChatAdapter: CHAT}
    form = next((form for base, form in forms.items() if issubclass(kind, base)), None)
    if form is None or issubclass(kind, BoundAnswers):
        raise ConfigurationError(
            f"{kind.__name__} has no form that this package knows, or is bound already; give "
            "constrained() a ChatAdapter, JSONAdapter, BAMLAdapter or XMLAdapter"
        )
    # DSPy knows its adapters by the names of their classes.
    reading = (_ExactStrings,) if form is JSON else ()
    bases = (ShortenedLists, BoundAnswers, *reading, kind)
    made: type[Adapter] = type(kind.__name__, bases, {"form": form, "__doc__": kind.__doc__})
    return made
