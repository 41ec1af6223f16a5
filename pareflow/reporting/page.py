"""The report of a run: one HTML page that needs nothing but itself, drawn from the run's JSON document."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pareflow.errors import StoreError
from pareflow.reporting import checks, formats, pareto_plot, plots
from pareflow.reporting.view import view
from pareflow.store import replace

FOLDER = Path(__file__).parent


def render(document: Mapping[str, Any]) -> str:
    """The page as HTML; what the document does not know is shown as –, never as 0."""
    parts = {name: Markup((FOLDER / f"page.{name}").read_text("utf-8")) for name in ("css", "js")}
    return _environment().get_template("page.html.j2").render(view(document), **parts)


def write(document: Mapping[str, Any], path: Path) -> None:
    """Put the page at `path`, whole or not at all; makes the folder.

    Raises: StoreError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, render(document))
    except OSError as error:
        raise StoreError(
            f"the report {path} must be writable",
            f"{error.strerror or error}",
            "Free some space or name another place",
        ) from error


@cache
def _environment() -> jinja2.Environment:
    """Escapes everything, for names and reasons come from users; None and what is missing become –."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        finalize=_shown,
    )
    words = ("number", "quality", "percent", "limit", "span", "duration")
    environment.filters.update({word: getattr(formats, word) for word in words})
    environment.filters.update(outcome=checks.outcome, relative=_relative)
    environment.tests.update(known=formats.known)
    environment.globals.update(
        interval_bar=plots.interval_bar, span_bar=plots.span_bar, symbol=pareto_plot.symbol
    )
    environment.globals.update(amount=formats.amount)
    for name in ("at_least", "bounds_of", "checks_of", "misses", "named", "unit_of"):
        environment.globals[name] = getattr(checks, name)
    return environment


def _shown(value: Any) -> Any:
    return formats.UNKNOWN if value is None or isinstance(value, jinja2.Undefined) else value


def _relative(path: Any) -> bool:
    """Whether it is safe as a link: a path beside the page, never a scheme such as `javascript:`."""
    return isinstance(path, str) and ":" not in path and not path.startswith(("/", "\\"))
