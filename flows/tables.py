"""Documents as tables on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pareflow.reporting.precision import precisions
from pareflow.variant import Step

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
    console.print(_precisions(document))
    if document["sweep"]:
        console.print(_sweep(document["sweep"]))
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
        minutes = "unknown" if row["minutes"] is None else f"{row['minutes']:.1f}"
        table.add_row(row["level"], escape(row["recipe"]), row["effort"], minutes, bound, escape(state))
    console.print(table)
    serving = document["serving"]
    if serving is not None:
        asked = f"a p99 of {serving['p99_ms']:g} ms at {serving['per_s']:g} requests/s through the server"
        console.print(
            f"then a serving plan of the winner, for {asked}: about {serving['minutes']:.1f} minutes"
        )


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


def rolled_out(document: Document, console: Console) -> None:
    """Each step of a rollout with what it showed, and what came of it."""
    table = Table(title=f"models:/{document['name']}/{document['version']} on live traffic")
    for heading in ("shadow", "canary", "asked", "agreed", "decision", "reason"):
        table.add_column(heading)
    for step in document["steps"]:
        counts = step["counts"] or {"asked": 0, "compared": 0, "agreed": 0}
        agreed = f"{counts['agreed']} of {counts['compared']}"
        shares = (f"{step['shadow']:g}", f"{step['canary']:g}")
        table.add_row(*shares, str(counts["asked"]), agreed, step["decision"], escape(step["reason"]))
    console.print(table)
    words = "is promoted to all" if document["decision"] == "promote" else "is not promoted"
    console.print(
        f"version {document['version']} {words}: {escape(document['reason'])}",
        soft_wrap=True,
        highlight=False,
    )


def _search(document: Document) -> Iterator[str]:
    """What each step of the winner gives, why the search ended, and what it would try next."""
    for step in document["contributions"]:
        if step["speedup"] is not None:
            times = step["speedup"]["estimate"]
            yield f"{step['step']}: {times:.2f} times as fast as {step['without']}, which lacks it"
    search = document["search"]
    if search is not None:
        following = "; ".join(search["next"][:3])
        yield f"the search ended: {search['ended']}" + (f"; next: {following}" if following else "")


def _serving(serving: Document | None) -> Iterator[str]:
    """What became of the serving plan, and winner and baseline through the server."""
    if serving is None:
        return
    yield f"serving: {serving['reason']}"
    sides = {"optimized": serving["optimized"], "original": serving["original"]}
    for name, side in sides.items():
        if side is not None and side["p99"] is not None:
            times = f"p50 {side['p50_ms']:.3g} ms, p99 {_bounds(side['p99'])} ms"
            yield f"  {name} through the server: {times}, {side['recipe']}, {side['words']}"


def exported(document: Document, console: Console) -> None:
    """Where the bundle lies, what it asks for, and how to try it."""
    pins = ", ".join(document["requirements"])
    for line in (
        f"wrote {document['archive']} ({document['size_mib']:.2f} MiB, {len(document['files'])} files)",
        f"sha256 {document['sha256']}",
        f"needs Python {document['python']} or later, and {pins}",
        "unpack it anywhere, and run `python run.py --self-test`; it passed here",
    ):
        console.print(escape(line), soft_wrap=True, highlight=False)


def exported_for_a_server(document: Document, console: Console) -> None:
    """What was written, and what of the plan the other server lacks."""
    for line in (*(f"wrote {document['to']}/{file}" for file in document["files"]), *document["left_out"]):
        console.print(escape(line), soft_wrap=True, highlight=False)


def placements(document: Document, console: Console) -> None:
    """Every cut: what crosses, what each side and the transfer take, and which is chosen."""
    link = document["link"]
    table = Table(
        title=f"{document['pipeline']}, batch {document['batch_size']}: {link['bandwidth_mbit']:g} Mbit/s, "
        f"{link['round_trip_ms']:g} ms, {document['device'] or 'a device'} of {link['slower']:.3g} times "
        "this machine's time"
    )
    device = "device ms (estimated)" if document["device_is_estimated"] else "device ms"
    for heading in ("", "layer", "bytes", device, "transfer ms (estimated)", "server ms", "total ms", ""):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for position, row in enumerate(document["placements"]):
        times = [_estimate(row[name]) for name in ("device_ms", "server_ms", "total_ms")]
        cells = [str(position), row["layer"], f"{row['bytes']:,.0f}", times[0], f"{row['transfer_ms']:.3g}"]
        last = row["reason"] or ("chosen" if row["chosen"] else "")
        table.add_row(*map(escape, [*cells, *times[1:], last]), style="bold green" if row["chosen"] else None)
    console.print(table)
    if document["left_out"]:
        console.print(f"{len(document['left_out'])} more cuts were not measured: raise --most")
    if document["written"]:
        console.print(escape(f"both halves are in {document['written']}"), soft_wrap=True, highlight=False)


def tuned(document: Document, console: Console) -> None:
    """Every plan: what the simulation said, what LoadGen measured through the server, and the decision."""
    promise = document["promise"]
    table = Table(
        title=f"{document['model']} version {document['version']}: p99 of {promise['p99_ms']:g} ms at "
        f"{promise['per_s']:g} requests/s"
    )
    for heading in ("sessions", "policies", "simulated p99 ms", "p50 ms", "p99 ms", "decision"):
        table.add_column(heading, justify="right" if heading.endswith(("ms", "sessions")) else "left")
    for row in document["tried"]:
        if row["decision"] != "left out":
            steps = [Step.from_json(step).label for step in row["plan"]["policies"]]
            p50 = "" if row["p50_ms"] is None else f"{row['p50_ms']:.3g}"
            cells = (
                f"{row['simulated_ms']:.3g}",
                p50,
                "" if row["p99"] is None else _bounds(row["p99"]),
                row["decision"],
            )
            table.add_row(str(row["plan"]["sessions"]), escape(" → ".join(steps)), *cells)
    console.print(table)
    left_out = sum(row["decision"] == "left out" for row in document["tried"])
    console.print(f"{left_out} other plans were left out by simulation")
    for position, row in enumerate(document["tried"]):
        if row["reason"]:
            console.print(escape(f"plan {position}: {row['reason']}"), soft_wrap=True, highlight=False)
    verdict = "no plan keeps it" if document["plan"] is None else "the first keeps it"
    written = f"; written to {document['written']}" if document["written"] else ""
    registered = "; registered with the version, for this environment" if document["registered"] else ""
    console.print(escape(f"{verdict}{written}{registered}"), soft_wrap=True)


def rejudged(document: Document, console: Console) -> None:
    """A registered version: every clause then and now, what changed around it, and whether it holds."""
    title = f"models:/{document['name']}/{document['version']}: {document['recipe']}"
    table = Table(title=title)
    for heading in ("clause", "limit", "then", "now", "decision"):
        table.add_column(heading)
    now = {check["clause"]: check for check in (document["now"] or {"checks": ()})["checks"]}
    for check in document["was"]["checks"]:
        again = now.get(check["clause"])
        found = ("", "not judged") if again is None else (_bounds(again), again["decision"])
        table.add_row(check["clause"], f"{check['limit']:g}", _bounds(check), *found)
    console.print(table)
    for name, change in document["environment_changes"].items():
        console.print(escape(f"{name} was {change['then']}, is {change['now']}"), soft_wrap=True)
    holds = "still holds" if document["holds"] else "does not hold"
    console.print(escape(f"the verdict {holds} here: {document['reason']}"), soft_wrap=True, highlight=False)


def store(document: Document, console: Console) -> None:
    """Entries and MiB by kind and by who needs them, and what goes on there now."""
    total = f"{document['store']}: {document['entries']} entries, {document['mib']:.1f} MiB"
    table = Table(title=total)
    for heading in ("", "entries", "MiB"):
        table.add_column(heading, justify="right" if heading else "left")
    named = [(row["kind"], row) for row in document["kinds"]]
    named += [(f"needed by {row['by']}", row) for row in document["needed"]]
    for name, row in named:
        table.add_row(escape(name), str(row["entries"]), f"{row['mib']:.1f}")
    console.print(table)
    for row in document["running"]:
        running = f"{row['what']} (process {row['pid']}) began {row['minutes']:.0f} minutes ago"
        console.print(escape(f"{running}, and needs all that it has used"), soft_wrap=True, highlight=False)
    if document["leftovers"]:
        console.print(
            f"{document['leftovers']} leftovers of killed commands: `pareflow collect` removes them"
        )


def collected(document: Document, console: Console) -> None:
    """What went, what is left, and why that may be more than was asked for."""
    removed, left = f"{document['removed']} entries", f"{document['left_mib']:.1f} MiB left"
    said = f"removed {removed}, {document['freed_mib']:.1f} MiB; {left} in {document['store']}"
    console.print(escape(said), soft_wrap=True, highlight=False)
    if document["needed_too_much"]:
        limit = f"at most {document['max_gib']:g} GiB was asked for"
        console.print(f"[red]{limit}:[/red] {document['needed_too_much']}", soft_wrap=True, highlight=False)


def doctor(document: Document, console: Console) -> None:
    """The machine, what is available on it, and what to fix."""
    environment = document["environment"]
    console.print(
        f"{environment['processor']}, {environment['cores']} cores, {environment['memory_mib']} MiB; "
        f"{', '.join(environment['flags'])}; {document['free_mib']} MiB of disk free",
        soft_wrap=True,
        highlight=False,
    )
    for line in _machine(document["machine"]):
        console.print(escape(line), soft_wrap=True, highlight=False)
    for family in ("techniques", "backends"):
        rows = [
            {family: member["name"], "what": member["what"], "state": member["unavailable"] or "available"}
            for member in document[family]
        ]
        listing(rows, console)
    for server in document["servers"]:
        if server["problems"] == []:
            clock = "" if server["clock_s"] is None else f", its clock {server['clock_s']:+.1f} s from ours"
            answers = f"{server['name']} {server['version']} at {server['url']} answers{clock}"
            console.print(escape(answers), soft_wrap=True, highlight=False)
    for problem in document["problems"]:
        console.print(f"[red]to fix:[/red] {escape(problem)}", soft_wrap=True, highlight=False)


def _machine(machine: Document) -> Iterator[str]:
    """The machine inside, line by line; what the system does not tell is left out."""
    if machine["caches"]:
        told = (f"L{c['level']} {c['kind'].lower()} {c['kib']} KiB" for c in machine["caches"])
        yield f"caches of a core: {', '.join(told)}"
    for node in machine["memory_nodes"]:
        yield f"memory node {node['node']}: cores {node['cores']}, {node['mib']} MiB"
    rates = machine["rates"]
    if rates is None:
        yield f"rates: not measured ({machine['no_rates']})"
    else:
        known = {name: rate for name, rate in rates["by_precision"].items() if rate is not None}
        told = (f"{name} {rate:.0f}" for name, rate in known.items())
        yield f"one thread multiplies matrices at 10⁹ operations per second: {', '.join(told)}"
        yield f"and copies {rates['copy_gb_per_s']:.1f} GB/s, read and written"
    for gpu in machine["graphics"]:
        cores = ", ".join(gpu["tensor_cores"]) or "none"
        capability = gpu["compute_capability"]
        yield f"{gpu['name']}: {gpu['memory_mib']:.0f} MiB, capability {capability}, tensor cores: {cores}"
    for runtime, devices in machine["devices"].items():
        yield f"{runtime} lists {', '.join(f'{name} ({full})' for name, full in devices.items())}"
    present = ", ".join(name for name, library in machine["allocators"].items() if library) or "glibc only"
    yield f"huge pages: {machine['huge_pages'] or 'not told'}; allocators: {present}"


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


def _precisions(document: Document) -> Table:
    """Bits, bytes, speed and quality: the fastest variant of each way to store and compute numbers."""
    table = Table(title="by precision: the fastest variant of the whole network")
    for heading in ("stored by", "computed in"):
        table.add_column(heading)
    for heading in ("bits per weight", "MiB", "speedup", "quality"):
        table.add_column(heading, justify="right")
    for row in precisions(document):
        variant = row["variant"]
        numbers = (f"{row['bits']:.1f}", f"{variant['size_mib']:.2f}")
        quality = f"{variant['quality']['value']:.4f}"
        table.add_row(row["stored_by"], row["computed_in"], *numbers, _interval(variant["speedup"]), quality)
    return table


def _sweep(points: Sequence[Document]) -> Table:
    """The winner beside the strong baseline, one row per batch size and length."""
    table = Table(title="the winner against ONNX Runtime fp32, by batch size and length")
    sides = ("baseline p50 ms", "p99 ms", "winner p50 ms", "p99 ms")
    for heading in ("batch", "length", *sides, "samples/s", "speedup"):
        table.add_column(heading, justify="right")
    for point in points:
        axes = (str(point["batch_size"]), _plain(point["length"]))
        if point["reason"] is not None:
            table.add_row(*axes, *[""] * 5, escape(point["reason"]))
            continue
        found = (point["baseline"]["latency_ms"], point["winner"]["latency_ms"])
        latencies = (f"{side[name]:.3g}" for side in found for name in ("p50", "p99"))
        table.add_row(*axes, *latencies, f"{point['winner']['throughput']:.4g}", _interval(point["speedup"]))
    return table


def _estimate(interval: Document | None) -> str:
    return "" if interval is None else f"{interval['estimate']:.3g}"


def _interval(interval: Document) -> str:
    bounds = "–".join("?" if interval[side] is None else f"{interval[side]:.2f}" for side in ("low", "high"))
    return f"{interval['estimate']:.2f}× ({bounds})"


def _bounds(check: Document) -> str:
    if check["estimate"] is None:
        return "not measured"
    low, high = ("?" if check[side] is None else f"{check[side]:.4g}" for side in ("low", "high"))
    return f"{check['estimate']:.4g} ({low} to {high})"


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


def monitored(document: Document, console: Console) -> None:
    """The latest figures of a served model, and its breaches."""
    table = Table(title=f"{document['name']} version {document['version']}, {document['looks']} looks")
    for heading in ("figure", "last"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, value in sorted(document["figures"].items()):
        table.add_row(escape(name), f"{value:.4g}")
    console.print(table)
    for breach in document["breaches"]:
        back = f"; rolled back to version {breach['rolled_back_to']}" if breach["rolled_back_to"] else ""
        line = f"breach by version {breach['version']}: {breach['reason']}{back}"
        console.print(escape(line), soft_wrap=True, highlight=False)
