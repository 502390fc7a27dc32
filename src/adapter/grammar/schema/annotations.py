"""Python types as JSON schemas that contain all that pydantic checks, as far as possible."""

from __future__ import annotations

import contextlib
import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal

import pydantic
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, PydanticOmit

from adapter.grammar.schema.alias_paths import with_fields_at_paths
from adapter.grammar.schema.merging import SchemaError
from adapter.grammar.schema.web_formats import url_format
from adapter.grammar.schema.whole_constraints import with_constraints_within


def annotation_schema(annotation: Any, metadata: tuple[Any, ...] = ()) -> dict[str, Any]:
    """The JSON schema of a type and of a field's constraints.

    pydantic applies a field's constraints after the validators of its type, whose schema it does
    not know. As most validators only check a value, the schema applies the constraints first.

    Raises:
        SchemaError: the type has no schema.
    """
    metadata = tuple(sorted(metadata, key=lambda one: isinstance(one, _VALIDATORS)))
    try:
        adapter: Any = pydantic.TypeAdapter(annotated(annotation, metadata))
        schema: dict[str, Any] = adapter.json_schema(schema_generator=_Generator)
        return schema
    except (PydanticUserError, PydanticOmit, RuntimeError, TypeError) as error:
        raise SchemaError(f"{annotation!r} has no JSON schema: {error}") from None


_VALIDATORS = (
    pydantic.AfterValidator,
    pydantic.BeforeValidator,
    pydantic.PlainValidator,
    pydantic.WrapValidator,
)


def annotated(annotation: Any, metadata: tuple[Any, ...]) -> Any:
    """A type together with a field's constraints.

    pydantic.Json is left out: an answer is JSON already, and is read once.
    """
    made: Any = annotation
    for constraint in metadata:
        if constraint is not pydantic.Json and not isinstance(constraint, pydantic.Json):
            made = Annotated[made, constraint]
    return made


class _Generator(GenerateJsonSchema):
    """Adds what pydantic's schemas leave out. What no schema can express becomes x-unchecked."""

    def function_after_schema(self, schema: Any) -> JsonSchemaValue:
        within = with_constraints_within(schema)
        return (
            super().function_after_schema(schema) if within is None else self.generate_inner(within)
        )

    def chain_schema(self, schema: Any) -> JsonSchemaValue:
        within = with_constraints_within(schema)
        return super().chain_schema(schema) if within is None else self.generate_inner(within)

    def model_fields_schema(self, schema: Any) -> JsonSchemaValue:
        return super().model_fields_schema(self._by_paths(schema))

    def typed_dict_schema(self, schema: Any) -> JsonSchemaValue:
        return super().typed_dict_schema(self._by_paths(schema))

    def dataclass_args_schema(self, schema: Any) -> JsonSchemaValue:
        fields = self._by_paths({"fields": {one["name"]: one for one in schema["fields"]}})[
            "fields"
        ]
        named: Any = {**schema, "fields": [{**one, "name": name} for name, one in fields.items()]}
        return super().dataclass_args_schema(named)

    def _by_paths(self, schema: Any) -> Any:
        return (
            with_fields_at_paths(schema) if self._config.validate_by_alias is not False else schema
        )

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().dict_schema(schema)
        keys = self._keys(schema["keys_schema"]) if "keys_schema" in schema else {}
        kept = {key: keys[key] for key in keys if key != "title"}
        if kept in ({}, {"type": "string"}):
            return made
        if "patternProperties" not in made:
            made["propertyNames"] = keys
        elif kept.keys() - {"type", "pattern"}:  # all of a key's constraints in one place
            [made["additionalProperties"]] = made.pop("patternProperties").values()
            made["propertyNames"] = keys
        return made

    def _keys(self, schema: Any) -> JsonSchemaValue:
        """The schema of a dict's keys, which are strings in JSON, even those of an IntEnum."""
        if schema["type"] != "enum":
            return self.generate_inner(schema)
        fits = pydantic.TypeAdapter(schema["cls"])
        taken = []
        for member in schema["members"]:
            if type(member.value) in (int, str):
                with contextlib.suppress(pydantic.ValidationError):
                    fits.validate_python(str(member.value))
                    taken.append(str(member.value))
        return {"enum": taken}

    def enum_schema(self, schema: Any) -> JsonSchemaValue:
        return _of_values(super().enum_schema(schema), schema["cls"])

    def literal_schema(self, schema: Any) -> JsonSchemaValue:
        if not schema["expected"]:  # no value can pass a constraint
            return {"not": {}}
        return _of_values(super().literal_schema(schema), Literal[tuple(schema["expected"])])

    def url_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().url_schema(schema)
        return {**made, "format": url_format(schema.get("allowed_schemes"))}

    def multi_host_url_schema(self, schema: Any) -> JsonSchemaValue:
        return self.url_schema(schema)

    def bytes_schema(self, schema: Any) -> JsonSchemaValue:
        # Lengths of bytes are those of texts in which each character is one byte.
        return {**super().bytes_schema(schema), "pattern": "^[ -~]*$"}

    def set_schema(self, schema: Any) -> JsonSchemaValue:
        return _as_set(super().set_schema(schema))

    def frozenset_schema(self, schema: Any) -> JsonSchemaValue:
        return _as_set(super().frozenset_schema(schema))

    def date_schema(self, schema: Any) -> JsonSchemaValue:
        return _between(super().date_schema(schema), schema, datetime.timedelta(days=1))

    def time_schema(self, schema: Any) -> JsonSchemaValue:
        made = {**super().time_schema(schema), "format": _zoned("time", schema)}
        return _between(made, schema, _MICROSECOND)

    def datetime_schema(self, schema: Any) -> JsonSchemaValue:
        made = {**super().datetime_schema(schema), "format": _zoned("date-time", schema)}
        return _between(made, schema, _MICROSECOND)

    def timedelta_schema(self, schema: Any) -> JsonSchemaValue:
        return _between({"type": "string", "format": "duration"}, schema, _MICROSECOND)

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().float_schema(schema)
        return _of_exact_multiples(made) if "multipleOf" in made else made

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:
        made: dict[str, Any] = {"type": "number"}
        for name, keyword in _OF_DECIMALS.items():
            if name in schema:
                made[keyword] = float(schema[name])
        unsaid = [
            name
            for name, keyword in _OF_DECIMALS.items()
            if keyword in made and Decimal(repr(made[keyword])) != Decimal(schema[name])
        ]
        digits = {name: schema[name] for name in ("max_digits", "decimal_places") if name in schema}
        # Also without one: the number must be read as it is written.
        made["x-digits"] = digits
        return {**made, "x-unchecked": unsaid} if unsaid else made

    def str_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().str_schema(schema)
        if schema.get("strip_whitespace") and "pattern" in made:
            made["x-stripped"] = True
        elif schema.get("strip_whitespace") and "minLength" in made:
            made["x-unchecked"] = ["strip_whitespace"]
        return made

    def complex_schema(self, schema: Any) -> JsonSchemaValue:
        number = r"\d{1,15}(\.\d{1,15})?"
        return {"type": "string", "pattern": f"^-?{number}([+-]{number}j)?$"}

    def json_schema(self, schema: Any) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"]) if "schema" in schema else {}
        return {"type": "string", "x-json": inner}

    def handle_invalid_for_json_schema(
        self, schema: CoreSchema, error_info: str
    ) -> JsonSchemaValue:
        raise SchemaError(f"no JSON schema says {error_info}")


def _of_values(made: dict[str, Any], annotation: Any) -> JsonSchemaValue:
    """An enumeration without values that pydantic refuses in their JSON form, such as tuples."""
    values = made["enum"] if "enum" in made else [made["const"]]
    fits = pydantic.TypeAdapter(annotation)
    taken = []
    for value in values:
        with contextlib.suppress(pydantic.ValidationError, TypeError):
            fits.validate_python(value)
            taken.append(value)
    if len(taken) == len(values):
        return made
    return {"enum": taken} if taken else {"x-unchecked": [f"the values of {annotation}"]}


def _as_set(made: dict[str, Any]) -> JsonSchemaValue:
    """A set takes items twice; it only counts them once. They are hashable."""
    made = {key: value for key, value in made.items() if key != "uniqueItems"}
    items = made.get("items") or {"type": ["string", "number", "boolean", "null"]}
    return {**made, "items": items, "x-set": True}


def _of_exact_multiples(made: dict[str, Any]) -> JsonSchemaValue:
    """A schema of floats all of whose multiples count as multiples for pydantic, or are marked
    unchecked.

    The larger a float is, the more it is rounded, and pydantic allows a deviation of 1e-9.
    Multiples of 0.25 are exact up to a large number, which becomes the bound if there is none.
    Multiples of 0.1 are inexact early. A bound there would exclude common numbers.
    """
    given = made["multipleOf"]
    step, read = Fraction(repr(given)), Fraction(float(given))
    if step == read:
        most = Fraction(10 ** (len(str(2**53 // read.denominator)) - 1))
        lower, upper = {"minimum": -int(most)}, {"maximum": int(most)}
        made = made if "exclusiveMinimum" in made else {**lower, **made}
        made = made if "exclusiveMaximum" in made else {**upper, **made}
    else:
        most = Fraction(1, 2 * 10**9) / (Fraction(1, 2**53) + abs(read - step) / step)
    for keywords in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if not any(abs(made[keyword]) <= most for keyword in keywords if keyword in made):
            return {**made, "x-unchecked": ["multiple_of of large numbers"]}
    return made


_MICROSECOND = datetime.timedelta(microseconds=1)
_OF_DECIMALS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}


def _between(made: dict[str, Any], schema: Any, least_step: datetime.timedelta) -> JsonSchemaValue:
    """A schema with the bounds of moments. Exclusive ones are moved by the smallest step.

    formatMinimum and formatMaximum are keywords of public validators.
    """
    made = dict(made)
    ends = {
        "formatMinimum": [(schema.get("ge"), 0), (schema.get("gt"), 1)],
        "formatMaximum": [(schema.get("le"), 0), (schema.get("lt"), -1)],
    }
    unsaid = []
    if "now_op" in schema:
        others = any(bound is not None for given in ends.values() for bound, _ in given)
        unsaid = ["now_op"] if others else _bound_to_today(schema, made)
    for keyword, bounds in ends.items():
        given = [(bound, steps) for bound, steps in bounds if bound is not None]
        try:
            [(bound, steps)] = given
            made[keyword] = _moment_text(bound, steps * least_step)
        except (ValueError, OverflowError, TypeError):
            if given:
                unsaid.append(keyword)
    return {**made, "x-unchecked": unsaid} if unsaid else made


def _bound_to_today(schema: Any, made: dict[str, Any]) -> list[str]:
    """Bound what is past or future. Moments are bounded by the day; the rest is reported."""
    is_past = schema["now_op"] == "past"
    keyword = "formatMaximum" if is_past else "formatMinimum"
    today = datetime.datetime.combine(datetime.date.today(), datetime.time())  # noqa: DTZ011
    if schema["type"] == "date":
        made[keyword] = _moment_text(today.date(), datetime.timedelta(days=-1 if is_past else 1))
        return []
    if schema.get("tz_constraint") == "aware":
        today = today.replace(tzinfo=datetime.timezone.utc)
    made[keyword] = _moment_text(today, datetime.timedelta(days=1 if is_past else 0))
    return ["now_op"]


def _moment_text(bound: Any, by: datetime.timedelta) -> str:
    if isinstance(bound, datetime.timedelta):
        return f"PT{(bound + by).total_seconds():.6f}S".replace("PT-", "-PT")
    if isinstance(bound, datetime.time):
        day = datetime.datetime.combine(datetime.date(2000, 1, 1), bound)
        moved = day + by
        if moved.date() != day.date():
            raise OverflowError
        return moved.timetz().isoformat()
    moved_day: datetime.date = bound + by
    return moved_day.isoformat()


def _zoned(kind: str, schema: Any) -> str:
    zone = schema.get("tz_constraint")
    return kind if zone == "aware" else f"naive-{kind}" if zone == "naive" else f"any-{kind}"
