"""The small plots that stand inside table cells: an interval against its limit, and a share of a whole."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pareflow.reporting.checks import at_least
from pareflow.reporting.formats import known
from pareflow.reporting.scale import Scale, covering
from pareflow.reporting.svg import element

WIDTH, HEIGHT = 180.0, 30.0
MIDDLE = HEIGHT / 2
CAP = 6.0


def interval_bar(check: Mapping[str, Any]) -> Markup:
    """A check's interval against its limit: what is allowed is shaded, an open end is an arrow.

    Empty if nothing was measured: a bar without a value would only look like one.
    """
    values = [check[key] for key in ("estimate", "low", "high", "limit") if known(check.get(key))]
    if not known(check.get("estimate")):
        return Markup("")
    scale = covering(values, 0.0, WIDTH, margin=0.18)
    parts = [_allowed(scale, check), _whisker(scale, check), _limit(scale, check), _dot(scale, check)]
    box = f"0 0 {WIDTH:g} {HEIGHT:g}"
    return element("svg", *parts, class_="interval-bar", viewBox=box, aria_hidden="true")


def span_bar(start: float, share: Any) -> Markup:
    """A stage's share of the whole, from where the stages before it end; both from 0 to 1."""
    track = element("rect", class_="track", width=100, height=8, rx=1)
    width = 100.0 * share if known(share) else None
    bar = element("rect", class_="bar", x=100.0 * start, width=width, height=8, rx=1) if width else ""
    box = {"viewBox": "0 0 100 8", "preserveAspectRatio": "none"}
    return element("svg", track, bar, class_="span-bar", aria_hidden="true", **box)


def _allowed(scale: Scale, check: Mapping[str, Any]) -> Markup:
    if not known(check.get("limit")):
        return Markup("")
    edge = scale(check["limit"])
    left, right = (edge, WIDTH) if at_least(check) else (0.0, edge)
    return element("rect", class_="allowed", x=left, width=right - left, y=3.0, height=HEIGHT - 6)


def _whisker(scale: Scale, check: Mapping[str, Any]) -> Markup:
    low, high = check.get("low"), check.get("high")
    if not known(low) and not known(high):
        return Markup("")  # no interval at all, as for an exact size: nothing that could look like one
    left = scale(low) if known(low) else 3.0
    right = scale(high) if known(high) else WIDTH - 3
    line = element("line", x1=left, x2=right, y1=MIDDLE, y2=MIDDLE)
    ends = [_end(left, open_to=None if known(low) else 1), _end(right, open_to=None if known(high) else -1)]
    return element("g", line, *ends, class_="whisker")


def _end(x: float, open_to: int | None) -> Markup:
    """A cap where the bound is known, an arrow head where it is not."""
    if open_to is None:
        return element("line", x1=x, x2=x, y1=MIDDLE - CAP, y2=MIDDLE + CAP)
    back = x + open_to * CAP
    return element("path", d=f"M{back:g} {MIDDLE - CAP:g} L{x:g} {MIDDLE:g} L{back:g} {MIDDLE + CAP:g}")


def _limit(scale: Scale, check: Mapping[str, Any]) -> Markup:
    if not known(check.get("limit")):
        return Markup("")
    x = scale(check["limit"])
    return element("line", class_="limit", x1=x, x2=x, y1=1.0, y2=HEIGHT - 1)


def _dot(scale: Scale, check: Mapping[str, Any]) -> Markup:
    return element("circle", class_="dot", cx=scale(check["estimate"]), cy=MIDDLE, r=3.2)
