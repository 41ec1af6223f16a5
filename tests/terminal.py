"""Documents as a terminal shows them."""

import io
from collections.abc import Callable
from typing import Any

from rich.console import Console


def rendered(table: Callable[[Any, Console], None], document: Any) -> str:
    """What the table prints, on a terminal that is wide enough."""
    console = Console(width=400, record=True, file=io.StringIO())
    table(document, console)
    return console.export_text()


def rows(text: str) -> list[list[str]]:
    """The cells below the headings of what was shown, row by row."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def lines(text: str) -> list[str]:
    """What was shown beside tables and their titles."""
    return [line for line in text.splitlines() if line[:1] not in "┏┃┡│└ "]
