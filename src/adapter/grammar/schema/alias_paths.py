"""Fields that a model looks for within other values: pydantic.AliasPath("names", 0)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_MOST_ITEMS = 100


def with_fields_at_paths(schema: Any) -> Any:
    """A core schema of fields in which those of an AliasPath stand where the path leads.

    A field that has an alias of one key as well is written under that. A field keeps its name if
    another field is in the way of its path.
    """
    fields: dict[str, Any] = schema["fields"]
    paths = {name: _path(one.get("validation_alias")) for name, one in fields.items()}
    if not any(paths.values()):
        return schema
    others = {_key(name, one) for name, one in fields.items() if paths[name] is None}
    whole = _Place()
    made: dict[str, Any] = {}
    for name, one in fields.items():
        path = paths[name]
        required = _is_required(one, schema.get("total", True))
        if path is None or path[0] in others or not whole.put(path, one["schema"], required):
            made[name] = one
        else:
            made.setdefault(path[0], one)
    for name, place in whole.places.items():
        of_object = place.field()
        kind = made[name]["type"]
        if kind != "typed-dict-field" and not of_object["required"]:
            of_object["schema"] = {"type": "default", "schema": of_object["schema"]}
        made[name] = {**of_object, "type": kind}
    return {**schema, "fields": made}


@dataclass
class _Place:
    """What stands at a key or a number: a field's schema, or an object or array of others."""

    places: dict[Any, _Place] = field(default_factory=dict)
    schema: Any = None
    required: bool = False

    def put(self, path: list[Any], schema: Any, required: bool) -> bool:
        """Put a field at the end of a path. Returns whether nothing is in the way."""
        if not path:
            if self.schema is not None or self.places:
                return False
            self.schema, self.required = schema, required
            return True
        key, *rest = path
        if self.schema is not None or any(type(one) is not type(key) for one in self.places):
            return False
        if isinstance(key, int) and not -_MOST_ITEMS <= key < _MOST_ITEMS:
            return False
        place = self.places.get(key, _Place())
        if not place.put(rest, schema, required):
            return False
        self.places[key] = place
        self.required = self.required or required
        return True

    def field(self) -> dict[str, Any]:
        return {"type": "typed-dict-field", "schema": self.whole(), "required": self.required}

    def whole(self) -> Any:
        """The core schema of all that stands here."""
        if self.schema is not None:
            return self.schema
        if not isinstance(next(iter(self.places)), int):
            fields = {name: place.field() for name, place in self.places.items()}
            if not self.required:  # an empty object would be an unknown key
                fields = {name: {**one, "required": True} for name, one in fields.items()}
            return {"type": "typed-dict", "fields": fields}
        count = max(0, *(key + 1 for key in self.places)) - min(0, *self.places)
        items: list[Any] = [{"type": "any"}] * count
        for key, place in self.places.items():
            items[key] = place.whole()
        return {"type": "tuple", "items_schema": items}


def _path(alias: Any) -> list[Any] | None:
    """The path of a field that has no alias of one key."""
    if not isinstance(alias, list):
        return None
    paths = alias if all(isinstance(one, list) for one in alias) else [alias]
    return None if any(len(one) == 1 for one in paths) else list(paths[0])


def _key(name: str, one: Any) -> str:
    """The key under which a field without a path is written."""
    alias = one.get("validation_alias", name)
    if isinstance(alias, str):
        return alias
    return next((str(path[0]) for path in alias if len(path) == 1), name)


def _is_required(one: Any, total: bool) -> bool:
    if one["type"] == "typed-dict-field":
        return bool(one.get("required", total))
    return bool(one["schema"]["type"] != "default")
