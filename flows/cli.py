"""The command line. Exits 0: met and registered; 2: bad input; 3: nothing met the SLA; 4: unfit; 130."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from flows import tables
from flows.environment import set_environment
from pareflow.errors import PareflowError

app = typer.Typer(
    name="pareflow",
    help="The fastest variant of your model that provably meets its SLA, or a plain no.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DATA = Path(".pareflow")
NOTHING_MET = 3
UNFIT = 4
INTERRUPTED = 130

Config = Annotated[Path, typer.Argument(help="a pipeline YAML")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="where the store, MLflow and reports lie")]
Target = Annotated[
    Path | None, typer.Option("--target", help="a device profile, such as configs/devices/pi5.yaml")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]


@app.command()
def optimize(
    config: Config,
    target: Target = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
    orchestrator: Annotated[bool, typer.Option(help="run under Prefect, or as plain functions")] = True,
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
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show Prefect's and MLflow's logs")
    ] = False,
) -> None:
    """Find, judge and register the fastest variant that meets the SLA, here or for another device."""
    set_environment(verbose)
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
    _show(document, tables.outcome, as_json)
    if document["winner"] is None or document["registered"] is None:
        raise typer.Exit(NOTHING_MET)


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
        _show(document, tables.rejudged, as_json)
        if not document["holds"]:
            raise typer.Exit(NOTHING_MET)
        return
    document = commands.check_pipeline(Path(target), data_dir)
    _show(document, lambda _, console: console.print(f"{target} is valid"), as_json)


@app.command()
def plan(config: Config, target: Target = None, data_dir: DataDir = DATA, as_json: AsJson = False) -> None:
    """Say what would run, and what is finished already; nothing is made."""
    from flows import commands

    _show(commands.plan(config, data_dir, target), tables.plan, as_json)


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
    what: Annotated[str, typer.Argument(help="techniques, backends, policies, workloads, runs or versions")],
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """List techniques, backends, policies, workloads, runs or registered versions."""
    set_environment()
    from flows import commands

    _show(commands.listing(what, data_dir), tables.listing, as_json)


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
    image: Annotated[str, typer.Option(help="kserve: an image with pareflow[serving]")] = "pareflow:latest",
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
        _show(commands.export(target, to, data_dir), tables.exported, as_json)
        return
    cluster = {"image": image, "storage_uri": storage_uri, "memory_mib": memory_mib}
    document = commands.export_served(target, to, data_dir, kind, plan, **cluster)
    _show(document, tables.exported_for_a_server, as_json)


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
    _show(document, tables.placements, as_json)


@app.command()
def serve(
    targets: Annotated[
        list[str], typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of a package")
    ],
    plan: Annotated[Path | None, typer.Option(help="a YAML of sessions, policies and limits")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    body_mib: Annotated[float, typer.Option(min=0.001, help="the most that one request holds")] = 64,
    poll_s: Annotated[float, typer.Option(min=0, help="how often to look for another version; 0: never")] = 5,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PAREFLOW_API_KEYS", help="who may ask; from the environment, separated by spaces"
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="in this process, or as replicas on a Ray cluster")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="host:port; default: one started for it")
    ] = None,
    replicas: Annotated[tuple[int, int], typer.Option(min=1, help="ray: at least and at most so many")] = (
        1,
        4,
    ),
    data_dir: DataDir = DATA,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log every switch of version")] = False,
) -> None:
    """Serve registered models over HTTP: Open Inference Protocol 2, MLflow's /invocations, /metrics."""
    set_environment(verbose)
    from flows import commands
    from pareflow.serving.settings import Settings

    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    settings = Settings(host, port, body_mib, poll_s or None, tuple(api_key or ()))
    if engine == "ray":
        commands.serve_on_ray(targets, data_dir, plan, settings, replicas, ray_address)
    else:
        commands.serve(targets, data_dir, plan, settings)


@app.command()
def pack(
    checkpoint: Annotated[Path, typer.Argument(help="the folder of a causal language model, in safetensors")],
    name: Annotated[str, typer.Option(help="what it is served as")],
    to: Annotated[Path, typer.Option(help="a new folder, for `serve`")],
    as_json: AsJson = False,
) -> None:
    """Pack a language model for `serve`: its files, their digests, and tokens that it must repeat."""
    set_environment()
    from pareflow.serving import language_model

    document = language_model.pack(checkpoint, name, to)
    said = f"{name}: {document['parameters'] / 1e6:.3g} M parameters in {to}; `pareflow serve {to}`"
    _show(document, lambda _, console: console.print(said, soft_wrap=True), as_json)


@app.command()
def tune(
    target: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, or the folder of a package")],
    per_s: Annotated[float, typer.Option(min=0.001, help="requests that arrive in a second, at random")],
    p99_ms: Annotated[float, typer.Option(min=0.001, help="what 99 % of them may wait for, at most")],
    queries: Annotated[int, typer.Option(min=300, help="requests per plan that is served")] = 700,
    to: Annotated[Path | None, typer.Option(help="a YAML for the best plan, for `serve --plan`")] = None,
    register: Annotated[
        bool,
        typer.Option("--register", help="keep it with the version: `serve` takes it where no plan is named"),
    ] = False,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Find the sessions and batches that keep a p99 at a rate: simulated, then served for real."""
    set_environment()
    from flows import commands

    promise = {"per_s": per_s, "p99_ms": p99_ms, "queries": queries}
    document = commands.tune(target, data_dir, promise, to, register)
    _show(document, tables.tuned, as_json)
    if document["plan"] is None:
        raise typer.Exit(NOTHING_MET)


@app.command()
def calibrate(
    target: Annotated[
        str,
        typer.Argument(help="models:/NAME@ALIAS, a pipeline YAML that has a winner, or a package's folder"),
    ],
    plan: Annotated[Path, typer.Option(help="the YAML of tiers and policies that lack their thresholds")],
    max_drop: Annotated[
        float,
        typer.Option(min=1e-6, max=0.5, help="the most that tiers may lose of the metric, all together"),
    ] = 0.01,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999999, help="how surely no more")] = 0.95,
    learn_scores: Annotated[
        bool, typer.Option("--learn-scores", help="of `complexity_routing`, on a third of the samples")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="the pipeline YAML of a version or package, where it has moved")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="a YAML for the plan with its thresholds")] = None,
    register: Annotated[
        bool,
        typer.Option("--register", help="keep it with the version: `serve` takes it where no plan is named"),
    ] = False,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Fill in the thresholds of cascades, routing and semantic caches, on held-out samples, for a version."""
    set_environment()
    from flows import calibration

    budget = {"max_drop": max_drop, "confidence": confidence}
    document = calibration.calibrate(
        target,
        data_dir,
        plan,
        budget,
        learn_scores=learn_scores,
        config=config,
        to=to,
        register=register,
    )
    _show(document, calibration.show, as_json)


@app.command()
def promote(config: Config, data_dir: DataDir = DATA, as_json: AsJson = False) -> None:
    """Make the challenger of a pipeline champion, if it is not worse than the present one."""
    set_environment()
    from flows import commands

    _show(commands.promote(config, data_dir), tables.promotion, as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="the registered model")],
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion champion again."""
    set_environment()
    from flows import commands

    _show(commands.rollback(name, data_dir), tables.promotion, as_json)


@app.command()
def store(data_dir: DataDir = DATA, as_json: AsJson = False) -> None:
    """Say what the store holds, by kind, and what registered models and running commands need of it."""
    set_environment()
    from flows import commands

    _show(commands.store(data_dir), tables.store, as_json)


@app.command()
def collect(
    max_gib: Annotated[float, typer.Option(min=0, help="what the store may hold; 0 keeps what is needed")],
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Shrink the store, least recently used first; what models and running commands need stays."""
    set_environment()
    from flows import commands

    document = commands.collect(data_dir, max_gib)
    _show(document, tables.collected, as_json)
    if document["needed_too_much"]:
        raise typer.Exit(UNFIT)


@app.command()
def doctor(data_dir: DataDir = DATA, as_json: AsJson = False) -> None:
    """Say what this machine and set-up can do, and what to fix."""
    from flows import commands

    document = commands.doctor(data_dir)
    _show(document, tables.doctor, as_json)
    if document["problems"]:
        raise typer.Exit(UNFIT)


def _show(document: Any, table: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        table(document, Console(width=None if sys.stdout.isatty() else 200))


def main() -> None:
    """The console script: every error of ours as one message, with its exit code."""
    try:
        app()
    except PareflowError as error:
        message = f"[bold red]error:[/bold red] {_escaped(error)}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)  # paths stay whole
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer's for Ctrl-C, which it keeps to itself
            Console(stderr=True).print("interrupted; the same command goes on from here", soft_wrap=True)
        raise


def _escaped(error: PareflowError) -> str:
    return str(error).replace("[", r"\[")


if __name__ == "__main__":
    main()
