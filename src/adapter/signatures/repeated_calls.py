"""What a signature and its demonstrations decide by themselves, kept for the calls that follow.

A program makes many calls with the same ones. They are recognized by their content, not by their
identity, since both can be changed in place. Signatures with types whose description may depend on
anything else, and demonstrations with values other than texts and numbers, are not kept.
"""

from __future__ import annotations

import datetime
import types
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

import dspy
from dspy.adapters.types import Reasoning
from dspy.signatures import Signature
from pydantic.fields import FieldInfo

from adapter.signatures.formatting import is_shortened

KEPT = 64
"""Of how many signatures with demonstrations something is kept."""

_LONGEST = 2**16
"""The most characters of one: some programs choose other demonstrations for each call."""


@dataclass(frozen=True)
class RepeatedCall:
    """A signature and demonstrations that equal others with the same content."""

    content: Hashable
    signature: type[Signature] = field(compare=False)
    demos: list[dict[str, Any]] = field(compare=False)

    @classmethod
    def of(cls, signature: type[Signature], demos: list[dict[str, Any]]) -> RepeatedCall | None:
        """Return them, or None if it is not certain that the same content means the same."""
        try:
            fields = tuple(_content(name, one) for name, one in signature.fields.items())
            shown = tuple(_shown(demo) for demo in demos)
        except _Uncertain:
            return None
        texts = (value for demo in shown for _, value, *_ in demo if type(value) is str)
        if len(signature.instructions) + sum(map(len, texts)) > _LONGEST:
            return None
        return cls((signature.instructions, is_shortened(), fields, shown), signature, demos)


class _Uncertain(Exception):
    """Equal contents may mean different things."""


def _content(name: str, field: FieldInfo) -> Hashable:
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or not _is_plain(field.annotation):
        raise _Uncertain
    kind, desc, constraints = map(extra.get, ("__dspy_field_type", "desc", "constraints"))
    for text in (desc, constraints):
        if text is not None and type(text) is not str:
            raise _Uncertain
    is_empty = isinstance(field.default, str) and field.default == ""
    # With its text: typing holds int | str and str | int to be equal, and they read otherwise.
    return name, field.annotation, repr(field.annotation), is_empty, kind, desc, constraints


def _shown(demo: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    if type(demo) not in (dict, dspy.Example):
        raise _Uncertain
    shown = []
    for name in demo:
        value = demo[name]
        if type(value) not in _EXACT:
            raise _Uncertain
        # With the type: True equals 1, and is written otherwise.
        shown.append((name, value) if type(value) is str else (name, type(value), value))
    return tuple(shown)


_EXACT = frozenset((str, bool, int, type(None)))
_PLAIN: frozenset[Any] = frozenset(
    (
        *(str, bool, int, float, type(None), Any, Reasoning),
        *(datetime.date, datetime.datetime, datetime.time),
    )
)
_OF_OTHERS = (list, dict, set, tuple, Union, types.UnionType)


def _is_plain(annotation: Any) -> bool:
    try:
        return _is_pythons(annotation)
    except TypeError:  # a Literal of what has no hash
        return False


@lru_cache(256)
def _is_pythons(annotation: Any) -> bool:
    """Whether a type is made of Python's own, so that it is always described and written alike."""
    if annotation in _PLAIN:
        return True
    origin = get_origin(annotation)
    if origin is Literal:
        return all(type(value) in _EXACT for value in get_args(annotation))
    return origin in _OF_OTHERS and all(
        part is Ellipsis or _is_pythons(part) for part in get_args(annotation)
    )
