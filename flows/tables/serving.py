"""What was written for other servers and devices, cuts, and serving plans, on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.tables.cells import Document, bounds, estimate
from pareflow.variant import Step


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
        times = [estimate(row[name]) for name in ("device_ms", "server_ms", "total_ms")]
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
                "" if row["p99"] is None else bounds(row["p99"]),
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
