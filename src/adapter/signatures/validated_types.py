"""Types without what changes a value, for values that their types validated already."""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic
from typing_extensions import is_typeddict

_OF_PARTS = (list, set, frozenset, dict, tuple, collections.deque)


def validated_type(annotation: Any) -> Any:
    """A type that takes the values of another one as they are.

    pydantic validates a value in each call anew. Validators within a type, such as those of the
    items of a list, would change the value twice, and `pydantic.Json` would read it twice. So what
    is within a list, a union, a TypedDict and the like is not validated again.
    """
    if annotation is pydantic.Json:
        return Any
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return validated_type(arguments[0])
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(validated_type, arguments))
    if origin in _OF_PARTS:
        container: Any = origin
        return container[tuple(one if one is ... else Any for one in arguments)]
    if origin is not None and origin is not Literal:
        is_class = isinstance(origin, type) and not is_typeddict(origin)
        return _instance_of(origin) if is_class else dict
    if is_typeddict(annotation):
        return dict
    is_tuple = isinstance(annotation, type) and issubclass(annotation, tuple)
    is_named = is_tuple and hasattr(annotation, "_fields")
    if is_named or dataclasses.is_dataclass(annotation) or _is_validated_anew(annotation):
        return _instance_of(annotation)
    return annotation


def _instance_of(kind: Any) -> Any:
    instance_of: Any = pydantic.InstanceOf
    return instance_of[kind]


def _is_validated_anew(annotation: Any) -> bool:
    is_model = isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
    return is_model and annotation.model_config.get("revalidate_instances", "never") != "never"
