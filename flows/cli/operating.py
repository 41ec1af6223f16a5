"""Commands about a year of operation: retraining, moves, rollouts, triggers, watching, and upkeep."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.options import (
    DATA,
    NOTHING_MET,
    UNFIT,
    AsJson,
    Config,
    DataDir,
    Host,
    Logs,
    Orchestrator,
    log,
    show,
)
from flows.environment import api_key, set_environment
from flows.rollout import Steps
from flows.tables import operating as tables
from flows.tables import running as running_tables
from flows.triggers import RULES
from tasks.ownership import WINDOW_S

app = typer.Typer()
MODEL = "a pipeline YAML, or the name of its registered model"
By = Annotated[str | None, typer.Option("--by", help="who, for the record; default: this user")]
Reason = Annotated[str, typer.Option("--reason", help="why, for the record")]


@app.command()
def retrain(
    config: Config,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
    orchestrator: Orchestrator = True,
    verbose: Logs = False,
) -> None:
    """Train and optimize again where data or code are new; promote what the champion does not beat."""
    set_environment(verbose)
    from flows import moves

    document = moves.retrain(config, data_dir, Console(stderr=True), orchestrated=orchestrator)
    show(document, running_tables.retrained, as_json)
    if document["retraining"]["new"] is not None and document["registered"] is None:
        raise typer.Exit(NOTHING_MET)


@app.command()
def promote(
    target: Annotated[str, typer.Argument(help=MODEL)],
    approve: Annotated[bool, typer.Option("--approve", help="approve the challenger that waits")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="decline it")] = False,
    over_champion: Annotated[
        bool, typer.Option("--over-champion", help="pass over a champion that cannot be compared with")
    ] = False,
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

    document = moves.move(
        target, approve, reject, to, config, data_dir, by, reason, over_champion=over_champion
    )
    show(document, tables.promotion, as_json)
    if not reject and to is None and document["alias"] != "champion":
        raise typer.Exit(NOTHING_MET)


@app.command()
def deploy(
    target: Annotated[str, typer.Argument(help=f"{MODEL}, whose challenger is tried")],
    url: Annotated[list[str] | None, typer.Option(help="a server of it; again for each of several")] = None,
    shadow: Annotated[
        float, typer.Option(help="share of the requests that both versions answer")
    ] = Steps.shadow,
    canary: Annotated[
        list[float] | None, typer.Option(help="share that the challenger answers; again for each step")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="how long a step may take to be decided")
    ] = Steps.minutes,
    max_disagreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.999999,
            help="share of other answers that is tolerated; default: the SLA's max_drop",
        ),
    ] = None,
    max_slowdown: Annotated[
        float, typer.Option(min=1, help="live times over the champion's, of median and 99th percentile")
    ] = Steps.slowdown,
    config: Annotated[
        Path | None, typer.Option(help="the pipeline YAML of the version, where it has moved")
    ] = None,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
    orchestrator: Orchestrator = True,
) -> None:
    """Try the challenger on live traffic: shadow, growing shares; then promote it to all, or take it back."""
    set_environment()
    from flows import naming, rollout

    document = rollout.deploy(
        naming.model_name(target),
        url or ["http://127.0.0.1:8000"],
        data_dir,
        Console(stderr=True),
        Steps(shadow, tuple(canary or Steps.canary), minutes, max_disagreement, max_slowdown),
        config=config or naming.pipeline_file(target),
        orchestrated=orchestrator,
    )
    show(document, tables.rolled_out, as_json)
    if document["decision"] != "promote":
        raise typer.Exit(NOTHING_MET)


@app.command()
def rollback(
    target: Annotated[str, typer.Argument(help=MODEL)],
    by: By = None,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="to a version that broke a rule of monitoring, too")
    ] = False,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion champion again."""
    set_environment()
    from flows import moves

    show(moves.rollback(target, data_dir, by, reason, force=force), tables.promotion, as_json)


@app.command()
def listen(
    rules: Annotated[Path, typer.Option(help="which versions start which pipeline")] = RULES,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8090,
    data_dir: DataDir = DATA,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log every delivery")] = False,
) -> None:
    """Receive MLflow's registry webhooks, and start the pipelines that the rules name."""
    set_environment(verbose)
    from flows import triggers

    log(verbose)
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
    show(document, triggers.hooked, as_json)
    if not document["answers"]:
        raise typer.Exit(UNFIT)


@app.command()
def reconcile(
    rules: Annotated[
        Path | None, typer.Option(help=f"which versions start which pipeline; default: {RULES}")
    ] = None,
    window_s: Annotated[float, typer.Option(help="so long without a heartbeat, a run is dead")] = WINDOW_S,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Mark and resume what died, remove what was left behind, start what was not heard of."""
    set_environment()
    from flows.reconcile import reconciled, run_reconcile

    given = rules or (RULES if RULES.is_file() else None)
    document = run_reconcile(given, data_dir, window_s)
    show(document, reconciled, as_json)
    if document["problems"]:
        raise typer.Exit(UNFIT)


@app.command()
def monitor(
    target: Annotated[str, typer.Argument(help=f"{MODEL}, which a server serves")],
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
    from flows import monitoring, naming
    from tasks.watching import Asked

    console = Console(stderr=True)
    name, path = naming.model_name(target), config or naming.pipeline_file(target)
    asked = Asked(name, url, data_dir, rules, path, requests, labels, seconds, api_key())
    document = monitoring.monitor(
        asked, lambda told: console.print(told, markup=False, highlight=False, soft_wrap=True)
    )
    show(document, tables.monitored, as_json)
    if document["breaches"]:
        raise typer.Exit(NOTHING_MET)


@app.command()
def store(data_dir: DataDir = DATA, as_json: AsJson = False) -> None:
    """Say what the store holds, by kind, and what registered models and running commands need of it."""
    set_environment()
    from flows import commands

    show(commands.store(data_dir), tables.store, as_json)


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
    show(document, tables.collected, as_json)
    if document["needed_too_much"]:
        raise typer.Exit(UNFIT)


@app.command()
def doctor(data_dir: DataDir = DATA, as_json: AsJson = False) -> None:
    """Say what this machine and set-up can do, servers included, and what to fix."""
    set_environment()
    from flows import commands

    document = commands.doctor(data_dir)
    show(document, tables.doctor, as_json)
    if document["problems"]:
        raise typer.Exit(UNFIT)
