"""Commands about serving: the server, what it serves beside variants, and how it should serve."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.options import DATA, NOTHING_MET, AsJson, DataDir, Host, log, show
from flows.environment import set_environment
from flows.tables import serving as tables

app = typer.Typer()
Register = Annotated[
    bool,
    typer.Option("--register", help="keep it with the version: `serve` takes it where no plan is named"),
]


@app.command()
def serve(
    targets: Annotated[
        list[str], typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of a package")
    ],
    plan: Annotated[Path | None, typer.Option(help="a YAML of sessions, policies and limits")] = None,
    host: Host = "127.0.0.1",
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

    log(verbose)
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
    show(document, lambda _, console: console.print(said, soft_wrap=True), as_json)


@app.command()
def tune(
    target: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, or the folder of a package")],
    per_s: Annotated[float, typer.Option(min=0.001, help="requests that arrive in a second, at random")],
    p99_ms: Annotated[float, typer.Option(min=0.001, help="what 99 % of them may wait for, at most")],
    queries: Annotated[int, typer.Option(min=300, help="requests per plan that is served")] = 700,
    to: Annotated[Path | None, typer.Option(help="a YAML for the best plan, for `serve --plan`")] = None,
    register: Register = False,
    data_dir: DataDir = DATA,
    as_json: AsJson = False,
) -> None:
    """Find the sessions and batches that keep a p99 at a rate: simulated, then served for real."""
    set_environment()
    from flows import commands

    promise = {"per_s": per_s, "p99_ms": p99_ms, "queries": queries}
    document = commands.tune(target, data_dir, promise, to, register)
    show(document, tables.tuned, as_json)
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
    register: Register = False,
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
    show(document, calibration.show, as_json)
