"""Pydantic classes as tables: key, what it may be, default, what it means."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from docs.words import prose, rows

Schema = Mapping[str, Any]

_KINDS = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "null": "nothing",
    "object": "mapping",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def models(cls: type[BaseModel]) -> Iterator[str]:
    """A class and every class that its fields name, each under a heading."""
    schema = cls.model_json_schema()
    for name, one in {cls.__name__: schema, **schema.get("$defs", {})}.items():
        yield f"\n## {name}\n\n{prose(one.get('description'))}\n"
        yield from _table(one)


def table(cls: type[BaseModel]) -> Iterator[str]:
    """The fields of one class."""
    schema = cls.model_json_schema()
    yield from _table(schema, schema.get("$defs", {}))


def _table(schema: Schema, inline: Mapping[str, Schema] | None = None) -> Iterator[str]:
    """`inline` holds classes that have no heading of their own to link to."""
    required = set(schema.get("required", ()))
    cells = (
        (
            f"`{name}`",
            _words(field, inline),
            "must be given" if name in required else _default(field),
            prose(field.get("description")),
        )
        for name, field in schema.get("properties", {}).items()
    )
    yield from rows(("key", "what it may be", "default", "what it means"), cells)


def _words(schema: Schema, inline: Mapping[str, Schema] | None = None) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if inline is None else _words(inline[name], inline)
    if "anyOf" in schema:
        given = [one for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(_words(one, inline) for one in given)
    if "enum" in schema or "const" in schema:
        return ", ".join(map(_shown, schema.get("enum", [schema.get("const")])))
    kind = _kind(schema, inline)
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    if "pattern" in schema:
        bounds.append(f"like `{schema['pattern']}`")
    if schema.get("minLength") or schema.get("minItems") or schema.get("minProperties"):
        bounds.append("not empty")
    return ", ".join([kind, *bounds])


def _kind(schema: Schema, inline: Mapping[str, Schema] | None) -> str:
    match schema.get("type"):
        case "array":
            parts = schema.get("prefixItems") or [schema.get("items", {})]
            return "list of " + ", ".join(_words(one, inline) for one in parts)
        case "object" if isinstance(schema.get("additionalProperties"), Mapping):
            return f"mapping of names to {_words(schema['additionalProperties'], inline)}"
        case None:
            return "anything"
        case kind:
            return _KINDS[kind]


def _default(field: Schema) -> str:
    if "default" not in field or field["default"] is None:
        return "none"
    if "$ref" in field:
        return "its defaults"
    return _shown(field["default"])


def _shown(value: Any) -> str:
    """A value as it is written in YAML."""
    plain = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"`{plain}`"
