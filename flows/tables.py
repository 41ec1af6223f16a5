"""Documents as tables on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Document = Mapping[str, Any]


def outcome(document: Document, console: Console) -> None:
    """All variants (row 0 the baseline), the verdict, the registered version, the report."""
    table = Table(
        title=f"{document['pipeline']}: every variant, against ONNX Runtime fp32 on as many threads"
    )
    for heading in ("", "variant", "ran", "p50 ms", "p99 ms", "speedup", "quality", "MiB", "verdict"):
        table.add_column(heading, justify="left" if heading in ("variant", "ran", "verdict") else "right")
    for position, row in enumerate(document["variants"]):
        style = "bold green" if row["id"] and row["id"] == document["winner"] else None
        table.add_row(str(position), *map(escape, _cells(row)), style=style)
    console.print(table)
    console.print(escape(_verdict(document)), soft_wrap=True, highlight=False)
    registered = document["registered"]
    if registered:
        console.print(
            f"registered: models:/{registered['name']}/{registered['version']} "
            f"as {registered['alias']} ({escape(registered['reason'])})",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"report: {document['report']}", soft_wrap=True, highlight=False)


def plan(document: Document, console: Console) -> None:
    """The candidates, and which of them are made."""
    table = Table(title=f"{document['pipeline']}: run {document['run_id']}")
    for heading in ("candidate", "state"):
        table.add_column(heading)
    for row in document["candidates"]:
        state = row["unavailable"] or ("made" if row["made"] else "to make")
        table.add_row(escape(row["recipe"]), escape(state))
    console.print(table)


def listing(rows: Sequence[Document], console: Console) -> None:
    """Rows with the keys of the first as headings."""
    if not rows:
        console.print("none")
        return
    table = Table()
    headings = list(rows[0])
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(escape(_plain(row.get(heading))) for heading in headings))
    console.print(table)


def promotion(document: Document, console: Console) -> None:
    """Where a version stands now."""
    console.print(
        f"models:/{document['name']}/{document['version']} is {document['alias']}: "
        f"{escape(document['reason'])}",
        soft_wrap=True,
        highlight=False,
    )


def doctor(document: Document, console: Console) -> None:
    """The machine, what is available on it, and what to fix."""
    environment = document["environment"]
    console.print(
        f"{environment['processor']}, {environment['cores']} cores, {environment['memory_mib']} MiB; "
        f"{', '.join(environment['flags'])}; {document['free_mib']} MiB of disk free",
        soft_wrap=True,
        highlight=False,
    )
    for family in ("techniques", "backends"):
        rows = [
            {family: member["name"], "what": member["what"], "state": member["unavailable"] or "available"}
            for member in document[family]
        ]
        listing(rows, console)
    for problem in document["problems"]:
        console.print(f"[red]to fix:[/red] {escape(problem)}", soft_wrap=True, highlight=False)


def _cells(row: Document) -> list[str]:
    if row["latency_ms"] is None:
        return [row["recipe"], f"{row['status']}: {row['reason']}", *[""] * 6]
    ran, quality, speedup = row["ran"], row["quality"], row["speedup"]
    return [
        row["recipe"],
        f"{ran['runtime']} {ran['precision']} ×{ran['threads']}",
        f"{row['latency_ms']['p50']:.3g}",
        f"{row['latency_ms']['p99']:.3g}",
        _interval(speedup),
        f"{quality['value']:.4f}",
        f"{row['size_mib']:.2f}",
        row["verdict"]["decision"] if row["verdict"] else row["status"],
    ]


def _interval(interval: Document) -> str:
    bounds = "–".join("?" if interval[side] is None else f"{interval[side]:.2f}" for side in ("low", "high"))
    return f"{interval['estimate']:.2f}× ({bounds})"


def _verdict(document: Document) -> str:
    verdict = document["verdict"]
    if verdict is None:
        return "verdict: inconclusive: no variant could be judged"
    winner = next((row for row in document["variants"] if row["id"] == document["winner"]), None)
    if winner is None:
        return f"verdict: {verdict['decision']}: {verdict['reason']}"
    return (
        f"verdict: promote {winner['recipe']}: {_interval(winner['speedup'])} as fast as ONNX Runtime fp32, "
        f"{winner['quality']['metric']} {winner['quality']['value']:.4f}; {verdict['reason']}"
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
