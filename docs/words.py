"""Docstrings and tables as Markdown."""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence


def prose(docstring: str | None) -> str:
    """A docstring's paragraphs, each on one line; what says `Source:` or `Raises:` is one of its own."""
    text = re.sub(r"\n(Source|Raises): ", r"\n\n\1: ", inspect.cleandoc(docstring or ""))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def rows(header: Sequence[str], cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table, or nothing where it has no rows."""
    lines = [_line(row) for row in cells]
    if lines:
        yield "\n".join([_line(header), _line(["---"] * len(header)), *lines, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"
