"""Settings. Each is declared once, as a field of a dataclass; everything else is derived from that.

Its annotation defines which values are allowed::

    min_p: Fraction = setting(0.05, "0 = off", call="llamacpp")

``Sampling`` declares those of llama.cpp's samplers, and ``engine.config`` the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError

from adapter.errors import InvalidParameterError

T = TypeVar("T")

Call = Literal["openai", "llamacpp"]
"""Under whose name a call sets it. "dspy" is mostly the name in OpenAI's API. "llamacpp" is the
name in llama.cpp's server, which DSPy passes on in metadata={"llamacpp": {…}}.
"""

InName = Literal["always", "changed", "never"]
"""Whether it is part of the lm's name, the key of DSPy's cache. "changed": only if it is not the
default, so that names stay the same when a setting is added. "never": it does not affect an answer.
"""


@dataclass(frozen=True)
class Words:
    """Describes which values a type allows, if its bounds do not show it."""

    text: str


@dataclass(frozen=True)
class _Purpose:
    """The metadata of a field; see setting()."""

    doc: str
    call: Call | None
    in_name: InName
    minus_one: Any


def setting(
    default: Any,
    doc: str,
    *,
    call: Call | None = None,
    in_name: InName = "changed",
    minus_one: Any = MISSING,
) -> Any:
    """Declare a setting as a field of a dataclass.

    Args:
        default: its default; ``dict`` for an empty one.
        doc: one line of documentation about what its values mean.
        call: under whose name a call may set it; None if only a config has it.
        in_name: whether it is part of the lm's name; "never" if it does not affect an answer.
        minus_one: what -1 stands for, as in llama.cpp.
    """
    metadata = {"setting": _Purpose(doc, call, in_name, minus_one)}
    if default is dict:
        return field(default_factory=dict, hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


class Setting:
    """One setting: its declaration and its check.

    Attributes:
        name: of the field, wherever a user writes it.
        default: MISSING if there is none.
        allowed: its values, in words.
        doc, call, in_name, minus_one: see setting().
    """

    def __init__(self, name: str, default: Any, hint: Any, purpose: _Purpose) -> None:
        self.name = name
        self.default = default
        self.allowed = _in_words(hint)
        self.doc = purpose.doc
        self.call = purpose.call
        self.in_name = purpose.in_name
        self.minus_one = purpose.minus_one
        self._hint = hint
        self._adapter: TypeAdapter[Any] | None = None  # made when needed: it takes 0.2 ms

    def checked(self, value: Any, where: str | None = None) -> Any:
        """Return the value if it is allowed, with lists as tuples.

        Args:
            where: what the user wrote to set it, if that is not the name.

        Raises:
            InvalidParameterError: it is not allowed.
        """
        if type(value) is int and value == -1 and self.minus_one is not MISSING:
            return self.minus_one
        if self._adapter is None:
            self._adapter = TypeAdapter(self._hint, config=_STRICT)
        try:
            valid = self._adapter.validate_python(value)
        except (ValidationError, RecursionError):
            raise InvalidParameterError(where or self.name, value, self.allowed) from None
        if isinstance(valid, list):
            return tuple(valid)
        return value if isinstance(value, (int, float)) else valid

    def is_named(self, value: Any) -> bool:
        """Whether the lm's name contains it if it has this value."""
        return self.in_name == "always" or (self.in_name == "changed" and value != self.default)


def settings_of(cls: type) -> Mapping[str, Setting]:
    """The settings that a dataclass declares, by name. Those of its bases come first.

    Raises:
        TypeError: a field is not declared as a setting.
    """
    return _settings_of(cls)


@lru_cache
def _settings_of(cls: type) -> Mapping[str, Setting]:
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for each in fields(cls):
        purpose = each.metadata.get("setting")
        if not isinstance(purpose, _Purpose):
            raise TypeError(f"{cls.__name__}.{each.name} needs = setting(…)")
        made = each.default_factory() if each.default_factory is not MISSING else each.default
        found[each.name] = Setting(each.name, made, hints[each.name], purpose)
    return MappingProxyType(found)


def documented(cls: type[T]) -> type[T]:
    """Add the settings of a dataclass to its docstring, for help()."""
    lines = (f"    {each.name}: {each.doc} ({each.allowed})" for each in settings_of(cls).values())
    if cls.__doc__ is not None:  # python -OO removes docstrings
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Settings:", *lines])
    return cls


def check_all(settings: Any) -> None:
    """Check the fields of a frozen dataclass of settings, in its ``__post_init__``.

    Raises:
        InvalidParameterError: one is not allowed.
    """
    for name, each in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if value is not each.default:  # most are, in every call
            object.__setattr__(settings, name, each.checked(value))


_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_NUMBERS = {int: "an integer", float: "a number"}


def _in_words(hint: Any) -> str:
    """Which values a type allows."""
    args = get_args(hint)
    if type(None) in args:
        [kind] = [each for each in args if each is not type(None)]
        return f"{_in_words(kind)}, or None"
    kind, *bounds = args if get_origin(hint) is Annotated else (hint,)
    for bound in bounds:
        if isinstance(bound, Words):
            return bound.text
    if kind is bool:
        return "True or False"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    least = next((bound for bound in bounds if isinstance(bound, (Ge, Gt))), None)
    most = next((bound.le for bound in bounds if isinstance(bound, Le)), None)
    word = _NUMBERS[kind]
    if isinstance(least, Gt):
        return f"{word} above {least.gt}" + ("" if most is None else f" and up to {most}")
    assert least is not None, f"{hint} has no bound"
    return f"{word} of at least {least.ge}" if most is None else f"{word} from {least.ge} to {most}"


def only_if(holds: Callable[[Any], bool]) -> PlainValidator:
    """Restrict a type to values for which a check holds. Words describes them."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError
        return value

    return PlainValidator(check)


def is_text(value: object) -> bool:
    """Whether a value is a string that is not empty."""
    return isinstance(value, str) and value != ""


Fraction = Annotated[float, Ge(0), Le(1)]
Text = Annotated[str, only_if(is_text), Words("a non-empty string")]
