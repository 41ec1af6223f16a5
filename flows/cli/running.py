"""Commands about a pipeline: what it asks for, its runs, and its winner on other devices."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from flows.cli.options import DATA, NOTHING_MET, AsJson, Config, DataDir, Logs, Orchestrator, Target, show
from flows.environment import set_environment
from flows.tables import operating as operating_tables
from flows.tables import running as tables
from flows.tables import serving as serving_tables
from pareflow.errors import TrackingError

app = typer.Typer()


@app.command()
def optimize(
    config: Config,
    target: Target = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
    orchestrator: Orchestrator = True,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="time everything again")] = False,
    runner: Annotated[
        Literal["local", "ray"], typer.Option(help="where variants are built: here, or on a Ray cluster")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="host:port; default: the one that runs here")
    ] = None,
    store_url: Annotated[
        str | None,
        typer.Option("--store", envvar="PAREFLOW_STORE", help="s3://bucket/prefix, shared by machines"),
    ] = None,
    deployment: Annotated[
        str | None, typer.Option(help="start a run of this Prefect deployment instead, such as on-demand")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="with --deployment: until it has ended")] = False,
    verbose: Logs = False,
) -> None:
    """Find, judge and register the fastest variant that meets the SLA, here or for another device."""
    set_environment(verbose)
    if deployment is not None or wait:
        shared = store_url if store_url != os.environ.get("PAREFLOW_STORE") else None
        here = {"--no-orchestrator": not orchestrator, "--runner": runner != "local", "--store": shared}
        _optimize_deployed(
            config, target, deployment, data_dir, as_json, here, wait=wait, remeasure=remeasure
        )
        return
    from flows import commands

    document = commands.optimize(
        config,
        data_dir,
        Console(stderr=True),
        orchestrated=orchestrator,
        remeasure=remeasure,
        target=target,
        runner=runner,
        ray_address=ray_address,
        store_url=store_url,
    )
    show(document, tables.outcome, as_json)
    _end(document)


def _end(outcome: Mapping[str, Any]) -> None:
    """With 3 where nothing won, nothing was registered, or the server does not keep the SLA's load."""
    unkept = outcome["serving"]["kept"] is False
    if outcome["winner"] is None or outcome["registered"] is None or unkept:
        raise typer.Exit(NOTHING_MET)


def _optimize_deployed(
    config: Path,
    target: Path | None,
    deployment: str | None,
    data_dir: Path,
    as_json: bool,
    here: Mapping[str, object],
    *,
    wait: bool,
    remeasure: bool,
) -> None:
    """Start a deployment's run; exits as a run here would where it was waited for.

    `here` are options that are about a run in this process: the worker's environment decides about its own.
    Raises: TrackingError where a run was waited for whose outcome is not to be found.
    """
    from flows import triggers

    deployment = triggers.named(deployment, [option for option, given in here.items() if given])
    document = triggers.optimize_deployed(
        config, target, deployment, data_dir, wait=wait, remeasure=remeasure
    )
    show(document, triggers.started, as_json)
    if not wait:
        return
    if document["outcome"] is None:
        raise TrackingError(
            "command and worker must share an MLflow, which tells the outcome of a run",
            f"this one knows no run {document['run_id']}",
            "Set MLFLOW_TRACKING_URI here to what the worker has",
        )
    _end(document["outcome"])


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="a pipeline YAML, or models:/NAME@ALIAS")],
    config: Annotated[
        Path | None, typer.Option(help="the pipeline YAML of a registered version, where it has moved")
    ] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Validate a pipeline YAML, its workload and data. Or judge a registered version again, here."""
    set_environment()
    from flows import commands

    if target.startswith("models:"):
        document = commands.check_version(target, config, data_dir)
        show(document, operating_tables.rejudged, as_json)
        if not document["holds"]:
            raise typer.Exit(NOTHING_MET)
        return
    document = commands.check_pipeline(Path(target), data_dir, Console(stderr=True))
    show(document, lambda _, console: console.print(f"{target} is valid"), as_json)


@app.command()
def plan(config: Config, target: Target = None, data_dir: DataDir = DATA, as_json: AsJson = False) -> None:
    """Say what would run, and what is finished already; nothing is made."""
    from flows import commands

    show(commands.plan(config, data_dir, Console(stderr=True), target), tables.plan, as_json)


@app.command()
def init(name: Annotated[str, typer.Argument(help="the new workload, and its folder")]) -> None:
    """Write a workload folder to start from."""
    from flows import commands

    for path in commands.init(name, Path.cwd()):
        typer.echo(f"wrote {path}")


@app.command()
def report(config: Config, target: Target = None, data_dir: DataDir = DATA) -> None:
    """Print where the report of a pipeline's last run lies."""
    from flows import commands

    typer.echo(commands.report(config, data_dir, target))


@app.command("list")
def list_all(
    what: Annotated[
        str, typer.Argument(help="techniques, backends, policies, workloads, runs, versions or audit")
    ],
    name: Annotated[str | None, typer.Argument(help="audit: the registered model")] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """List techniques, backends, policies, workloads, runs, registered versions, or a model's moves."""
    set_environment()
    from flows import listing, moves

    rows = moves.history(name, data_dir) if what == "audit" else listing.rows(what, data_dir)
    versions = operating_tables.versions
    show(rows, versions if what == "versions" else operating_tables.listing, as_json)


@app.command()
def export(
    target: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, or a pipeline YAML that has a winner")],
    to: Annotated[Path, typer.Option("--to", help="the archive, .tar.gz or .zip; else a new folder")],
    kind: Annotated[
        Literal["bundle", "triton", "kserve"],
        typer.Option("--as", help="offline bundle, Triton model repository, or KServe InferenceService"),
    ] = "bundle",
    plan: Annotated[
        Path | None, typer.Option(help="triton, kserve: a YAML of sessions, policies and limits")
    ] = None,
    image: Annotated[str, typer.Option(help="kserve: the image `serving`")] = "pareflow-serving",
    storage_uri: Annotated[
        str, typer.Option(help="kserve: where the folder `model` is put")
    ] = "pvc://models/pareflow",
    memory_mib: Annotated[int, typer.Option(min=64, help="kserve: what the pod may use")] = 1024,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Write what serves a model elsewhere: offline with a self-test, on Triton, or on KServe."""
    set_environment()
    from flows import commands

    if kind == "bundle":
        show(commands.export(target, to, data_dir), serving_tables.exported, as_json)
        return
    cluster = {"image": image, "storage_uri": storage_uri, "memory_mib": memory_mib}
    document = commands.export_served(target, to, data_dir, kind, plan, **cluster)
    show(document, serving_tables.exported_for_a_server, as_json)


@app.command()
def split(
    config: Config,
    bandwidth_mbit: Annotated[float, typer.Option(help="between device and server, in Mbit/s")],
    round_trip_ms: Annotated[float, typer.Option(help="of an empty request and its answer")],
    slower: Annotated[float, typer.Option(help="how many times slower the device is than this machine")] = 1,
    target: Target = None,
    most: Annotated[int, typer.Option(min=1, help="cuts that are measured, at most")] = 8,
    write: Annotated[Path | None, typer.Option(help="a new folder for both halves of the chosen row")] = None,
    at: Annotated[int | None, typer.Option(help="write this row's halves instead")] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Cut the network between a device and a server, where it answers soonest."""
    set_environment()
    from flows import commands

    link = {"bandwidth_mbit": bandwidth_mbit, "round_trip_ms": round_trip_ms, "slower": slower}
    document = commands.split(config, data_dir, link, target, most=most, into=write, at=at)
    show(document, serving_tables.placements, as_json)
