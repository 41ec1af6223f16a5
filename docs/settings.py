"""Pydantic classes as tables: key, what it may be, default, what it means."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from docs.words import prose, rows

Schema = Mapping[str, Any]
Parts = str | Mapping[str, Schema]
"""The classes that fields name: the class whose headings to link to, or their schemas, which have none."""

_KINDS = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "null": "nothing",
    "object": "mapping",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def models(cls: type[BaseModel], heading: str = "##") -> Iterator[str]:
    """A class and every class that its fields name, each under a heading that the others link to."""
    schema = cls.model_json_schema()
    root = f"{cls.__module__}.{cls.__name__}"
    for name, one in {cls.__name__: schema, **schema.get("$defs", {})}.items():
        yield f"\n({_label(root, name)})=\n{heading} {name}\n\n{prose(one.get('description'))}\n"
        yield from _table(one, root)


def _label(root: str, name: str) -> str:
    """What a heading is linked by: two files may have parts of one name."""
    return f"{root}.{name}".replace(".", "-").lower()


def table(cls: type[BaseModel]) -> Iterator[str]:
    """The fields of one class."""
    schema = cls.model_json_schema()
    yield from _table(schema, schema.get("$defs", {}))


def _table(schema: Schema, parts: Parts) -> Iterator[str]:
    required = set(schema.get("required", ()))
    cells = (
        (
            f"`{name}`",
            _words(field, parts),
            "must be given" if name in required else _default(field),
            prose(field.get("description")),
        )
        for name, field in schema.get("properties", {}).items()
    )
    yield from rows(("key", "what it may be", "default", "what it means"), cells)


def _words(schema: Schema, parts: Parts) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_label(parts, name)})" if isinstance(parts, str) else _words(parts[name], parts)
    if "anyOf" in schema:
        given = [one for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(_words(one, parts) for one in given)
    if "enum" in schema or "const" in schema:
        return ", ".join(map(_shown, schema.get("enum", [schema.get("const")])))
    kind = _kind(schema, parts)
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    if "pattern" in schema:
        bounds.append(f"like `{schema['pattern']}`")
    if schema.get("minLength") or schema.get("minItems") or schema.get("minProperties"):
        bounds.append("not empty")
    return ", ".join([kind, *bounds])


def _kind(schema: Schema, parts: Parts) -> str:
    match schema.get("type"):
        case "array":
            found = schema.get("prefixItems") or [schema.get("items", {})]
            return "list of " + ", ".join(_words(one, parts) for one in found)
        case "object" if isinstance(schema.get("additionalProperties"), Mapping):
            return f"mapping of names to {_words(schema['additionalProperties'], parts)}"
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
