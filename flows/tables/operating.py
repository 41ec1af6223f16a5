"""Lists, moves, rollouts, what was watched, and the state of store and machine, on a terminal."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.tables.cells import Document, bounds, plain


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
        table.add_row(*(escape(plain(row.get(heading))) for heading in headings))
    console.print(table)


def versions(rows: Sequence[Document], console: Console) -> None:
    """Registered versions: where each stands, and in how many environments the gate said what of it."""
    shown = [
        {
            **{name: row[name] for name in ("name", "version", "aliases")},
            "recipe": row.get("pareflow.recipe"),
            "verdicts": _verdicts(row),
            "pipeline": row.get("pareflow.config"),
        }
        for row in rows
    ]
    listing(shown, console)


def _verdicts(row: Document) -> str:
    said = Counter(str(value) for tag, value in row.items() if tag.startswith("pareflow.verdict."))
    return ", ".join(decision if n == 1 else f"{decision} ×{n}" for decision, n in sorted(said.items()))


def promotion(document: Document, console: Console) -> None:
    """Where a version stands now."""
    console.print(
        f"models:/{document['name']}/{document['version']} is {document['alias']}: "
        f"{escape(document['reason'])}",
        soft_wrap=True,
        highlight=False,
    )


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


def rejudged(document: Document, console: Console) -> None:
    """A registered version: every clause then and now, what changed around it, and whether it holds."""
    title = f"models:/{document['name']}/{document['version']}: {document['recipe']}"
    table = Table(title=title)
    for heading in ("clause", "then", "limit then", "now", "limit now", "decision"):
        table.add_column(heading)
    verdicts = (document["was"], document["now"] or {"checks": ()})
    then, now = ({check["clause"]: check for check in verdict["checks"]} for verdict in verdicts)
    for clause in {**then, **now}:
        decision = now[clause]["decision"] if clause in now else "not judged"
        table.add_row(clause, *_beside_limit(then.get(clause)), *_beside_limit(now.get(clause)), decision)
    console.print(table)
    for name, change in document["environment_changes"].items():
        console.print(escape(f"{name} was {change['then']}, is {change['now']}"), soft_wrap=True)
    holds = "still holds" if document["holds"] else "does not hold"
    console.print(escape(f"the verdict {holds} here: {document['reason']}"), soft_wrap=True, highlight=False)


def _beside_limit(check: Document | None) -> tuple[str, str]:
    return ("", "") if check is None else (bounds(check), f"{check['limit']:g}")


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
        no_less = math.ceil(document["mib"] / 1024)
        told = f"`pareflow collect --max-gib {no_less}` removes them and nothing else"
        line = f"{document['leftovers']} leftovers of killed commands: {told}"
        console.print(line, soft_wrap=True, highlight=False)


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
    if document["servers"] and document["promotions_meet_in"] == "data folder":
        told = "promotions meet in the data folder: on a second host they need PAREFLOW_LOCK_DATABASE"
        console.print(told, soft_wrap=True, highlight=False)
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
        memory = "memory not told" if gpu["memory_mib"] is None else f"{gpu['memory_mib']:.0f} MiB"
        yield f"{gpu['name']}: {memory}, capability {capability}, tensor cores: {cores}"
    for runtime, devices in machine["devices"].items():
        yield f"{runtime} lists {', '.join(f'{name} ({full})' for name, full in devices.items())}"
    present = ", ".join(name for name, library in machine["allocators"].items() if library) or "glibc only"
    yield f"huge pages: {machine['huge_pages'] or 'not told'}; allocators: {present}"
