"""The plot of quality against latency, as SVG: every variant, the Pareto front, the limits of the SLA."""

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from pareflow.reporting import formats
from pareflow.reporting.labels import LETTER, LINE, REACH, Box, Label, arrange
from pareflow.reporting.pareto import LEFT, TOP, Axes, Kind, Limits, Point, axes_for, front
from pareflow.reporting.svg import element

# Every kind has a shape of its own, so that nothing hangs on colour alone.
SHAPES: dict[Kind, str] = {
    "winner": "M0 -9 L2.3 -3.2 L8.6 -2.8 L3.8 1.2 L5.3 7.3 L0 4 L-5.3 7.3 L-3.8 1.2 L-8.6 -2.8 L-2.3 -3.2Z",
    "baseline": "M-5.5 -5.5 H5.5 V5.5 H-5.5 Z",
    "original": "M0 -7 L7 0 L0 7 L-7 0 Z",
    "rejected": "M-5 -5 L5 5 M5 -5 L-5 5",
    "candidate": "M-5 0 A5 5 0 1 1 5 0 A5 5 0 1 1 -5 0 Z",
}


def pareto_plot(points: Sequence[Point], limits: Limits, metric: str, width: float, height: float) -> Markup:
    """The plot as SVG, `width` by `height` pixels; each mark is a link to its row in the table."""
    axes = axes_for(points, limits, width, height)
    box = f"0 0 {width:g} {height:g}"
    title = f"{metric} against p50 latency of {len(points)} variants; the same numbers are in the table"
    parts = [*_grid(axes, metric), *_limits(axes, points, limits, metric), _front_line(axes, points, limits)]
    parts += [_whisker(axes, point) for point in points]
    parts += [_mark(axes, point) for point in points]
    parts += _labels(axes, points, limits, metric)
    return element("svg", *parts, class_="pareto", viewBox=box, role="group", aria_label=title)


def symbol(kind: Kind, judged: bool = True) -> Markup:
    """A mark on its own, for the legend."""
    mark = _shape(kind, judged, 9.0, 9.0)
    return element("svg", mark, class_="symbol", viewBox="0 0 18 18", aria_hidden="true")


def _grid(axes: Axes, metric: str) -> Iterator[Markup]:
    for tick in axes.x.ticks(7 if axes.width > 500 else 4):
        x = axes.x(tick)
        yield element("line", class_="grid", x1=x, x2=x, y1=TOP, y2=axes.bottom)
        yield _text(f"{tick:g}", x, axes.bottom + 17, "tick", "middle")
    for tick in axes.y.ticks(6):
        y = axes.y(tick)
        yield element("line", class_="grid", x1=LEFT, x2=axes.right, y1=y, y2=y)
        yield _text(f"{tick:g}", LEFT - 7, y + 4, "tick", "end")
    scale = ", log scale" if axes.x.log else ""
    yield _text(
        f"p50 latency, ms{scale}: further left is faster", axes.right, axes.height - 10, "axis", "end"
    )
    turned = f"translate(13 {TOP:g}) rotate(-90)"
    side = "higher" if axes.higher_is_better else "lower"
    yield element("text", f"{metric}: {side} is better", class_="axis", text_anchor="end", transform=turned)


def _limits(axes: Axes, points: Sequence[Point], limits: Limits, metric: str) -> Iterator[Markup]:
    if limits.latency_ms is not None:
        yield from _latency_limit(axes, limits.latency_ms)
    name = _quality_name(axes, limits, metric)
    if name is not None and limits.quality is not None:
        yield from _quality_limit(axes, points, limits.quality, name)


def _latency_limit(axes: Axes, limit: float) -> Iterator[Markup]:
    """A line and its name above the plot; only the name, with an arrow, if the limit is far outside."""
    text = f"SLA: p50 ≤ {formats.limit(limit)} ms"
    if not axes.x.low <= limit <= axes.x.high:
        text = f"{text} →" if limit > axes.x.high else f"← {text}"
        yield _text(text, axes.right, TOP - 8, "limit-label", "end")
        return
    x = axes.x(limit)
    high = axes.bottom - TOP
    yield element("rect", class_="outside", x=x, y=TOP, width=axes.right - x, height=high)
    yield element("line", class_="limit", x1=x, x2=x, y1=TOP - 4, y2=axes.bottom)
    half = len(text) * LETTER / 2
    yield _text(text, min(max(x, LEFT + half), axes.right - half), TOP - 8, "limit-label", "middle")


def _quality_limit(axes: Axes, points: Sequence[Point], limit: float, text: str) -> Iterator[Markup]:
    y, wide = axes.y(limit), axes.right - LEFT
    top, bottom = (y, axes.bottom) if axes.higher_is_better else (TOP, y)
    yield element("rect", class_="outside", x=LEFT, y=top, width=wide, height=bottom - top)
    yield element("line", class_="limit", x1=LEFT, x2=axes.right, y1=y, y2=y)
    box = _beside_line(axes, points, y, text)
    yield _text(text, box.left, box.bottom - 4, "limit-label", "start")


def _quality_name(axes: Axes, limits: Limits, metric: str) -> str | None:
    """What the level line of the quality limit is called; None if there is no such line in the plot."""
    if limits.quality is None or not axes.y.low <= limits.quality <= axes.y.high:
        return None
    limit = formats.limit(limits.quality, 6)  # it may be computed from a drop, to any number of digits
    return f"SLA: {metric} {'≥' if axes.higher_is_better else '≤'} {limit}"


def _beside_line(axes: Axes, points: Sequence[Point], y: float, text: str) -> Box:
    """Room for the name of a level line: below or above it, at its right or left end, off every mark."""
    width = len(text) * LETTER
    starts = (axes.right - width - 4, LEFT + 6)
    places = [Box(x, top, x + width, top + LINE) for x in starts for top in (y + 2, y - LINE - 2)]
    marks = _covered(axes, points)
    return next((box for box in places if not any(map(box.meets, marks))), places[0])


def _front_line(axes: Axes, points: Sequence[Point], limits: Limits) -> Markup:
    """Steps, not slopes: between two variants there is nothing that could be had."""
    corners = [axes.place(point) for point in front(points, limits)]
    path = [f"M{corners[0][0]:.2f} {corners[0][1]:.2f}"]
    path += [f"H{x:.2f} V{y:.2f}" for x, y in corners[1:]]
    return element("path", class_="front", d=" ".join([*path, f"H{axes.right:.2f}"]))


def _whisker(axes: Axes, point: Point) -> Markup:
    _, y = axes.place(point)
    left = axes.x(point.latency_ms if point.low is None else point.low)
    right = axes.x(point.latency_ms if point.high is None else point.high)
    line = element("line", x1=left, x2=right, y1=y, y2=y)
    known = [x for x, bound in ((left, point.low), (right, point.high)) if bound is not None]
    caps = [element("line", x1=x, x2=x, y1=y - 4, y2=y + 4) for x in known]
    return element("g", line, *caps, class_=f"whisker {point.kind}")


def _mark(axes: Axes, point: Point) -> Markup:
    x, y = axes.place(point)
    shape = _beyond(axes, x, y) if axes.beyond(point) else _shape(point.kind, point.judged, x, y)
    target = element("circle", cx=x, cy=y, r=12, class_="target")  # fingers are wider than marks
    title = element("title", point.tip)
    row = f"#variant-{point.row}"
    return element("a", title, target, shape, class_="mark", href=row, aria_label=point.tip)


def _shape(kind: Kind, judged: bool, x: float, y: float) -> Markup:
    style = f"shape {kind}" if judged else f"shape {kind} hollow"
    return element("path", class_=style, d=SHAPES[kind], transform=f"translate({x:.2f} {y:.2f})")


def _beyond(axes: Axes, x: float, y: float) -> Markup:
    """An arrow at the edge: this one lies further out."""
    where = f"translate({x:.2f} {y:.2f})"
    outline = "M-6 -4 L6 -4 L0 6 Z" if axes.higher_is_better else "M-6 4 L6 4 L0 -6 Z"
    return element("path", class_="shape beyond", d=outline, transform=where)


def _labels(axes: Axes, points: Sequence[Point], limits: Limits, metric: str) -> Iterator[Markup]:
    """Names for the winner and the baselines, row numbers for the others where there is room."""
    taken = _covered(axes, points)
    name = _quality_name(axes, limits, metric)
    if name is not None and limits.quality is not None:
        taken.append(_beside_line(axes, points, axes.y(limits.quality), name))
    area = Box(LEFT, TOP, axes.right, axes.bottom)
    for label, box in arrange([_label(axes, point) for point in points], area, taken):
        yield _text(label.text, box.left, box.bottom - 4, label.style, "start")


def _covered(axes: Axes, points: Sequence[Point]) -> list[Box]:
    """What marks and whiskers cover."""
    ends = [(axes.x(p.low or p.latency_ms), axes.x(p.high or p.latency_ms), axes.place(p)) for p in points]
    return [Box(min(left, x - REACH), y - 5, max(right, x + REACH), y + 5) for left, right, (x, y) in ends]


def _label(axes: Axes, point: Point) -> Label:
    named = point.kind in ("winner", "original") or (point.kind == "baseline" and point.row == 0)
    text = f"{point.kind} ({point.row})" if named else str(point.row)
    if axes.beyond(point):
        text = f"{text}: {formats.quality(point.quality)}"
    return Label(text, f"label {point.kind}", *axes.place(point), needed=named)


def _text(text: str, x: float, y: float, style: str, anchor: str) -> Markup:
    return element("text", text, x=x, y=y, class_=style, text_anchor=anchor)
