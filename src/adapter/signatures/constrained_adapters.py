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
from dspy.signatures import Signature

from adapter.errors import ConfigurationError
from adapter.signatures.answer_grammar import CHAT, JSON, XML, Form
from adapter.signatures.bound_answers import BoundAnswers
from adapter.signatures.long_lists import ShortenedLists
from adapter.signatures.typed_values import MISFITS, dspy_value

AnyAdapter = TypeVar("AnyAdapter", bound=Adapter)


class _ExactValues:
    """A mixin for DSPy's adapters: what their own parsers cannot read is read as pydantic does.

    JSONAdapter parses strings in JSON again, as JSON of their own. If that changes the value, such
    as the number 9 for "9", the string is kept. All of them refuse the values of strict types that
    JSON writes as texts, and XMLAdapter those of types without a JSON schema.
    """

    form: ClassVar[Form]

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        parent: Any = super()
        fields = signature.output_fields
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
        return read

    def _written(
        self, signature: type[Signature], completion: str, parse: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """What an answer has for each field: values out of JSON, or texts."""
        if self.form is JSON:
            values: dict[str, Any] = json.loads(completion)
            return values
        for name in signature.output_fields:
            signature = signature.with_updated_fields(name, type_=str)
        return parse(signature, completion)

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
