"""A plan and an outcome as tables on a terminal."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.tables.cells import Document, bounds, interval, plain, quality
from pareflow.reporting import formats, gains, wording
from pareflow.reporting.precision import precisions


def outcome(document: Document, console: Console) -> None:
    """All variants (row 0 the baseline), the verdict, the registered version, the report."""
    against = wording.baseline_name(document)
    table = Table(title=f"{document['pipeline']}: every variant, against {against} on as many threads")
    for heading in ("", "variant", "ran", "p50 ms", "p99 ms", "speedup", "quality", "MiB", "verdict"):
        table.add_column(heading, justify="left" if heading in ("variant", "ran", "verdict") else "right")
    for position, row in enumerate(document["variants"]):
        style = "bold green" if row["id"] and row["id"] == document["winner"] else None
        table.add_row(str(position), *map(escape, _cells(row)), style=style)
    console.print(table)
    console.print(_precisions(document))
    if document["sweep"]:
        console.print(_sweep(document))
    console.print(escape(_verdict(document)), soft_wrap=True, highlight=False)
    for line in (*_serving(document.get("serving")), *_search(document)):
        console.print(escape(line), soft_wrap=True, highlight=False)
    if document["target"]:
        console.print(escape(document["target"]["words"]), soft_wrap=True, highlight=False)
    registered = document["registered"]
    if registered:
        console.print(
            f"registered: models:/{registered['name']}/{registered['version']} "
            f"as {registered['alias']} ({escape(registered['reason'])})",
            soft_wrap=True,
            highlight=False,
        )
        if registered["thresholds"]:
            console.print(escape(registered["thresholds"]), soft_wrap=True, highlight=False)
    console.print(f"report: {document['report']}", soft_wrap=True, highlight=False)


def plan(document: Document, console: Console) -> None:
    """What should compute, and the candidates: what takes least effort first."""
    accelerator = document["accelerator"]
    console.print(escape(f"compute on {accelerator['name']}: {accelerator['why']}"), soft_wrap=True)
    table = Table(title=f"{document['pipeline']}: run {document['run_id']}")
    for heading in ("level", "candidate", "takes", "minutes", "at most", "state"):
        table.add_column(heading)
    for row in document["candidates"]:
        state = row["unavailable"] or ("made" if row["made"] else "to make")
        bound = "unknown" if row["at_most"] is None else f"{row['at_most']:.1f}×"
        takes = (row["effort"], f"{row['minutes']:.1f}")
        table.add_row(row["level"], escape(row["recipe"]), *takes, bound, escape(state))
    console.print(table)
    if document["unseen"] is not None:
        console.print(document["unseen"], soft_wrap=True)
    serving = document["serving"]
    if serving is not None:
        asked = f"a p99 of {serving['p99_ms']:g} ms at {serving['per_s']:g} requests/s through the server"
        console.print(
            f"then a serving plan of the winner, for {asked}: about {serving['minutes']:.1f} minutes"
        )


def retrained(document: Document, console: Console) -> None:
    """What was new, the pipeline's tables, and the new original beside the champion."""
    found = document["retraining"]
    if found["new"] is None:
        console.print(escape(f"nothing to retrain: {found['why']}"), soft_wrap=True, highlight=False)
        return
    outcome(document, console)
    console.print(escape(f"retrained: {found['new']}"), soft_wrap=True, highlight=False)
    if found["original"] is not None:
        told = f"the new original, against version {found['champion']}: {found['original']['reason']}"
        console.print(escape(told), soft_wrap=True, highlight=False)


def _cells(row: Document) -> list[str]:
    if row["latency_ms"] is None:
        return [row["recipe"], _state(row), *[""] * 6]
    ran, speedup = row["ran"], row["speedup"]
    return [
        row["recipe"],
        f"{ran['runtime']} {ran['precision']} ×{ran['threads']}",
        formats.number(row["latency_ms"]["p50"]),
        formats.number(row["latency_ms"]["p99"]),
        interval(speedup),
        quality(row["quality"]),
        f"{row['size_mib']:.2f}",
        row["verdict"]["decision"] if row["verdict"] else _state(row),
    ]


def _state(row: Document) -> str:
    """Its status, and why where it is not ok."""
    return "ok" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"


def _precisions(document: Document) -> Table:
    """Bits, bytes, speed and quality: the fastest variant of each way to store and compute numbers."""
    table = Table(title="by precision: the fastest variant of the whole network")
    for heading in ("stored by", "computed in"):
        table.add_column(heading)
    for heading in ("bits per weight", "MiB", "speedup", "quality"):
        table.add_column(heading, justify="right")
    for row in precisions(document):
        variant = row["variant"]
        bits = "" if row["bits"] is None else f"{row['bits']:.1f}"
        numbers = (bits, f"{variant['size_mib']:.2f}")
        found = (interval(variant["speedup"]), quality(variant["quality"]))
        table.add_row(row["stored_by"], row["computed_in"], *numbers, *found)
    return table


def _sweep(document: Document) -> Table:
    """The winner beside the strong baseline, one row per batch size and length."""
    table = Table(title=f"the winner against {wording.baseline_name(document)}, by batch size and length")
    sides = ("baseline p50 ms", "p99 ms", "winner p50 ms", "p99 ms")
    for heading in ("batch", "length", *sides, "samples/s", "speedup"):
        table.add_column(heading, justify="right")
    for point in document["sweep"]:
        axes = (str(point["batch_size"]), plain(point["length"]))
        if point["reason"] is not None:
            table.add_row(*axes, *[""] * 5, escape(point["reason"]))
            continue
        found = (point["baseline"]["latency_ms"], point["winner"]["latency_ms"])
        latencies = (formats.number(side[name]) for side in found for name in ("p50", "p99"))
        throughput = formats.number(point["winner"]["throughput"])
        table.add_row(*axes, *latencies, throughput, interval(point["speedup"]))
    return table


def _verdict(document: Document) -> str:
    verdict = document["verdict"]
    if verdict is None:
        return "verdict: inconclusive: no variant could be judged"
    winner = wording.winning(document)
    if winner is None:
        return f"verdict: {verdict['decision']}: {verdict['reason']}"
    return (
        f"verdict: promote {winner['recipe']}: {_gained(winner, document)}, "
        f"{winner['quality']['metric']} {formats.quality(winner['quality']['value'])}; {verdict['reason']}"
    )


def _gained(winner: Document, document: Document) -> str:
    """By the objective first; where that is another than the median latency, how fast it is then."""
    found = wording.by_objective(winner, document)
    if found is None:
        return f"{interval(winner['speedup'])} as fast as {wording.baseline_name(document)}"
    ratio, name = found
    speed = gains.in_speed(winner["speedup"], interval)
    return f"{interval(ratio)} the {name} of {wording.baseline_name(document)}, and {speed}"


def _serving(serving: Document | None) -> Iterator[str]:
    """What became of the serving plan, and winner and baseline through the server."""
    if serving is None:
        return
    yield f"serving: {serving['reason']}"
    sides = {"optimized": serving["optimized"], "original": serving["original"]}
    for name, side in sides.items():
        if side is not None and side["p99"] is not None:
            times = f"p50 {formats.number(side['p50_ms'])} ms, p99 {bounds(side['p99'])} ms"
            yield f"  {name} through the server: {times}, {side['recipe']}, {side['words']}"


def _search(document: Document) -> Iterator[str]:
    """What the winner's steps give, why the search ended, what would be next, and what takes too long."""
    for step in document["contributions"]:
        if step["speedup"] is not None:
            size = f"{step['size']:.2f}× the size and " if document["objective"] == "size" else ""
            times = interval(step["speedup"])
            yield f"{step['step']}: {size}{times} as fast as {step['without']}, which lacks it"
    search = document["search"]
    if search is not None:
        following = "; ".join(search["next"][:3])
        yield f"the search ended: {search['ended']}" + (f"; next: {following}" if following else "")
        long = "; ".join(f"{one['recipe']} ({one['minutes']:.3g} minutes)" for one in search["too_long"][:3])
        if long:
            yield f"left out, for `budget.variant_minutes` allows less: {long}"
