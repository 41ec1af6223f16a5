"""SVG markup: one function that writes an element and escapes what is put into it."""

from typing import Any

from markupsafe import Markup, escape


def element(tag: str, *children: str, **attributes: Any) -> Markup:
    """`<tag attributes>children</tag>`.

    `stroke_width` becomes `stroke-width` and `class_` becomes `class`; an attribute that is None is left
    out; a child that is not Markup is escaped.
    """
    inside = Markup("").join(escape(child) for child in children)
    pairs = ((name, value) for name, value in attributes.items() if value is not None)
    written = Markup("").join(Markup(' {}="{}"').format(_name(name), _value(value)) for name, value in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inside)


def _name(name: str) -> Markup:
    return Markup(name.rstrip("_").replace("_", "-"))


def _value(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
