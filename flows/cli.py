"""The command line. Exits 0: met and registered; 2: bad input; 3: nothing met the SLA; 4: unfit; 130."""

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from flows import tables
from flows.environment import set_environment
from flows.triggers import RULES
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
    deployment: Annotated[
        str | None, typer.Option(help="start a run of this Prefect deployment instead, such as on-demand")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="with --deployment: until it has ended")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show Prefect's and MLflow's logs")
    ] = False,
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
    _show(document, tables.outcome, as_json)
    unkept = document["serving"]["kept"] is False
    if document["winner"] is None or document["registered"] is None or unkept:
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
    what: Annotated[
        str, typer.Argument(help="techniques, backends, policies, workloads, runs, versions or audit")
    ],
    name: Annotated[str | None, typer.Argument(help="audit: the registered model")] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """List techniques, backends, policies, workloads, runs, registered versions, or a model's moves."""
    set_environment()
    from flows import commands, moves

    rows = moves.history(name, data_dir) if what == "audit" else commands.listing(what, data_dir)
    _show(rows, tables.listing, as_json)


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
    poll_s: Annotated[float, typer.Option(min=0, help="how often to look for another version; 0: never")] = 1,
    standby: Annotated[
        bool, typer.Option(help="keep the previous version loaded: a rollback takes a second")
    ] = True,
    unjudged: Annotated[
        Literal["check", "refuse"],
        typer.Option(
            help="a version that was not judged in this environment: check what can be, or refuse it"
        ),
    ] = "check",
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
    request_log: Annotated[
        Path | None, typer.Option(help="a YAML of which requests are kept, and what of them; else none are")
    ] = None,
    data_dir: DataDir = DATA,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log every switch of version")] = False,
) -> None:
    """Serve registered models over HTTP: Open Inference Protocol 2, MLflow's /invocations, /metrics."""
    set_environment(verbose)
    from flows import commands
    from pareflow.serving import request_log as requests
    from pareflow.serving.settings import Settings

    _log(verbose)
    settings = Settings(
        host,
        port,
        body_mib,
        poll_s or None,
        tuple(api_key or ()),
        standby=standby,
        unjudged=unjudged,
        requests=None if request_log is None else requests.read(request_log),
        requests_folder=data_dir / "requests",
    )
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
def retrain(
    config: Config,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
    orchestrator: Annotated[bool, typer.Option(help="run under Prefect, or as plain functions")] = True,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show Prefect's and MLflow's logs")
    ] = False,
) -> None:
    """Train and optimize again where data or code are new; promote what the champion does not beat."""
    set_environment(verbose)
    from flows import moves

    document = moves.retrain(config, data_dir, Console(stderr=True), orchestrated=orchestrator)
    _show(document, tables.retrained, as_json)
    if document["retraining"]["new"] is not None and document["registered"] is None:
        raise typer.Exit(NOTHING_MET)


By = Annotated[str | None, typer.Option("--by", help="who, for the record; default: this user")]
Reason = Annotated[str, typer.Option("--reason", help="why, for the record")]


@app.command()
def promote(
    target: Annotated[str, typer.Argument(help="a pipeline YAML, or the name of a registered model")],
    approve: Annotated[bool, typer.Option("--approve", help="approve the challenger that waits")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="decline it")] = False,
    by: By = None,
    reason: Reason = "",
    to: Annotated[
        str | None, typer.Option("--to", help="the address of another registry: copy the champion there")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="the pipeline YAML of a registered model, where it has moved")
    ] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Make the challenger champion, if it is not worse than the present one; approve it; or copy it on."""
    set_environment()
    from flows import moves

    document = moves.move(target, approve, reject, to, config, data_dir, by, reason)
    _show(document, tables.promotion, as_json)


@app.command()
def deploy(
    name: Annotated[str, typer.Argument(help="the registered model, whose challenger is tried")],
    url: Annotated[list[str] | None, typer.Option(help="a server of it; again for each of several")] = None,
    shadow: Annotated[float, typer.Option(help="share of the requests that both versions answer")] = 0.5,
    canary: Annotated[
        list[float] | None, typer.Option(help="share that the challenger answers; again for each step")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="how long a step may take to be decided")] = 15,
    max_disagreement: Annotated[
        float | None,
        typer.Option(help="share of other answers that is tolerated; default: the SLA's max_drop"),
    ] = None,
    max_slowdown: Annotated[
        float, typer.Option(min=1, help="live times over the champion's, of median and 99th percentile")
    ] = 1.1,
    config: Annotated[
        Path | None, typer.Option(help="the pipeline YAML of the version, where it has moved")
    ] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
    orchestrator: Annotated[bool, typer.Option(help="run under Prefect, or as plain functions")] = True,
) -> None:
    """Try the challenger on live traffic: shadow, growing shares; then promote it to all, or take it back."""
    set_environment()
    from flows import rollout

    document = rollout.deploy(
        name,
        url or ["http://127.0.0.1:8000"],
        data_dir,
        Console(stderr=True),
        {
            "shadow": shadow,
            "canary": tuple(canary or (0.05, 0.25, 0.5)),
            "minutes": minutes,
            "disagreement": max_disagreement,
            "slowdown": max_slowdown,
        },
        config=config,
        orchestrated=orchestrator,
    )
    _show(document, tables.rolled_out, as_json)
    if document["decision"] != "promote":
        raise typer.Exit(NOTHING_MET)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="the registered model")],
    by: By = None,
    reason: Reason = "",
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion champion again."""
    set_environment()
    from flows import moves

    _show(moves.rollback(name, data_dir, by, reason), tables.promotion, as_json)


@app.command()
def listen(
    rules: Annotated[Path, typer.Option(help="which versions start which pipeline")] = RULES,
    host: Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8090,
    data_dir: DataDir = DATA,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log every delivery")] = False,
) -> None:
    """Receive MLflow's registry webhooks, and start the pipelines that the rules name."""
    set_environment(verbose)
    from flows import triggers

    _log(verbose)
    triggers.listen(rules, data_dir, host, port, lambda url: print(url, flush=True))


@app.command()
def webhook(
    url: Annotated[str, typer.Argument(help="where `pareflow listen` is reached from MLflow's server")],
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Tell MLflow's registry to call `pareflow listen`, and try it."""
    set_environment()
    from flows import triggers

    document = triggers.webhook(url, data_dir)
    _show(document, triggers.hooked, as_json)
    if not document["answers"]:
        raise typer.Exit(UNFIT)


@app.command()
def reconcile(
    rules: Annotated[
        Path | None, typer.Option(help="which versions start which pipeline; default: mlflow/triggers.yaml")
    ] = None,
    window_s: Annotated[float, typer.Option(help="so long without a heartbeat, a run is dead")] = 150,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Mark and resume what died, remove what was left behind, start what was not heard of."""
    set_environment()
    from flows.reconcile import reconciled, run_reconcile

    given = rules or (RULES if RULES.is_file() else None)
    document = run_reconcile(given, data_dir, window_s)
    _show(document, reconciled, as_json)
    if document["problems"]:
        raise typer.Exit(UNFIT)


@app.command()
def monitor(
    name: Annotated[str, typer.Argument(help="the registered model that a server serves")],
    url: Annotated[str, typer.Option(help="of `pareflow serve`")] = "http://127.0.0.1:8000",
    rules: Annotated[
        Path | None, typer.Option(help="a YAML; else monitoring.yaml beside the pipeline's")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="the pipeline YAML of the served version, where it has moved")
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(help="the server's request log, where it is not in the data folder")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="a CSV of request_id, label and row that grows at its end")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="for so long; else until Ctrl-C")] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Watch a served model, record it in MLflow, and act on breaches: event, rollback, retraining."""
    set_environment()
    from flows import monitoring
    from tasks.watching import Asked

    console = Console(stderr=True)
    asked = Asked(name, url, data_dir, rules, config, requests, labels, seconds, monitoring.api_key())
    document = monitoring.monitor(
        asked, lambda told: console.print(told, markup=False, highlight=False, soft_wrap=True)
    )
    _show(document, tables.monitored, as_json)
    if document["breaches"]:
        raise typer.Exit(NOTHING_MET)


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
    """Say what this machine and set-up can do, servers included, and what to fix."""
    set_environment()
    from flows import commands

    document = commands.doctor(data_dir)
    _show(document, tables.doctor, as_json)
    if document["problems"]:
        raise typer.Exit(UNFIT)


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
    """
    from flows import triggers

    deployment = triggers.named(deployment, [option for option, given in here.items() if given])
    document = triggers.optimize_deployed(
        config, target, deployment, data_dir, wait=wait, remeasure=remeasure
    )
    _show(document, triggers.started, as_json)
    outcome = document["outcome"]
    if outcome is not None and (outcome["winner"] is None or outcome["registered"] is None):
        raise typer.Exit(NOTHING_MET)


def _log(verbose: bool) -> None:
    """What a command that stays logs of itself."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")


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
