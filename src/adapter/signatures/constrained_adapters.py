"""DSPy's own adapters, with answers that cannot fail to parse."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar

import pydantic
from dspy.adapters import Adapter, ChatAdapter, JSONAdapter, XMLAdapter
from dspy.adapters.types import Type
from dspy.signatures import OutputField, Signature, make_signature

from adapter.errors import ConfigurationError
from adapter.signatures.answer_grammar import CHAT, JSON, XML, Form
from adapter.signatures.bound_answers import BoundAnswers, is_being_bound
from adapter.signatures.long_lists import ShortenedLists
from adapter.signatures.typed_values import MISFITS, dspy_value, value_in_json
from adapter.signatures.values import is_dspy_type

AnyAdapter = TypeVar("AnyAdapter", bound=Adapter)


class _ExactValues:
    """A mixin for DSPy's adapters: values are read as pydantic reads JSON, where they are JSON.

    DSPy's parsers read JSON as values of Python's. They refuse the values of strict types that JSON
    writes as texts, and may take those of one member of a union for another's. JSONAdapter parses
    strings in JSON again, as JSON of their own. If that changes the value, such as the number 9 for
    "9", the string is kept.
    """

    form: ClassVar[Form]

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        parent: Any = super()
        fields = signature.output_fields
        is_bound = is_being_bound(signature)
        if is_bound:  # DSPy's ChatAdapter misreads a marker with space before it
            completion = completion.lstrip()
        try:
            read: dict[str, Any] = parent.parse(signature, completion)
        except Exception:
            with contextlib.suppress(Exception):  # and report the first error
                values = self._written(signature, completion, parent.parse)
                return {
                    name: self._value(values[name], field.annotation)
                    for name, field in fields.items()
                }
            raise
        if is_bound:
            with contextlib.suppress(Exception):  # of an answer that a stop cut off
                values = self._written(signature, completion, parent.parse)
                for name, field in fields.items():
                    with contextlib.suppress(Exception):  # it is no JSON, but read
                        read[name] = self._in_json(values[name], field.annotation)
        return read

    def _in_json(self, written: Any, annotation: Any) -> Any:
        """A value out of JSON. Raises an exception if it is none, or if it may be a text."""
        if self.form is not JSON:
            return value_in_json(written, annotation)
        if annotation in (str, Any) or is_dspy_type(annotation, Type):
            raise ValueError("it may be a text")
        return pydantic.TypeAdapter(annotation).validate_json(json.dumps(written))

    def _written(
        self, signature: type[Signature], completion: str, parse: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """What an answer has for each field: values out of JSON, or texts."""
        if self.form is JSON:
            values: dict[str, Any] = json.loads(completion)
            return values
        texts: Any = {name: (str, OutputField()) for name in signature.output_fields}
        return parse(make_signature(texts), completion)

    def _value(self, written: Any, annotation: Any) -> Any:
        if self.form is not JSON:
            return dspy_value(written, annotation)
        try:
            return pydantic.TypeAdapter(annotation).validate_python(written)
        except MISFITS:
            return dspy_value(written, annotation)


def constrained(adapter: AnyAdapter) -> AnyAdapter:
    """A copy of one of DSPy's adapters whose answers always parse with a model of this package.

    ::

        dspy.configure(lm=…, adapter=constrained(dspy.ChatAdapter()))

    The copy is of the same class. It asks any other lm as the original does, without a grammar, and
    checks the values of its answers as well.

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
    bases = (ShortenedLists, BoundAnswers, _ExactValues, kind)
    made: type[Adapter] = type(kind.__name__, bases, {"form": form, "__doc__": kind.__doc__})
    return made
