"""The same server on Ray Serve: as many replicas as the load asks for, on as many nodes as there are.

Each replica is the application of `pareflow serve` with the same plan, so that its answers and refusals are
the same; Ray's proxy stands before them. It is for many nodes: Ray's proxy costs each request time
(`bench/serving.py peers`), which a tier of one machine does not have to take.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pareflow.errors import (
    EnvironmentUnfitError,
    InputError,
    MissingExtraError,
    TrackingError,
    TransientError,
)
from pareflow.serving.model import verified
from pareflow.serving.plan import ServingPlan
from pareflow.serving.settings import Settings
from pareflow.variant import Step
from tasks.cluster import largest_node, must_answer
from tasks.serving import source

NODE_DATA_DIR = "PAREFLOW_NODE_DATA_DIR"
APPLICATION = "pareflow"


@dataclass(frozen=True, slots=True)
class Scale:
    """Between how many replicas Ray chooses, and how many requests each should have under way."""

    least: int = 1
    most: int = 4
    each: int = 16


@dataclass(frozen=True, slots=True)
class Build:
    """Makes the application where a replica runs, from the registry or the folder as that node sees it.

    Each model has `most_sessions` at most: a node may have more cores than the replica was given.
    """

    targets: Sequence[str]
    data_dir: str
    plan: ServingPlan | None
    settings: Settings
    most_sessions: int | None = None

    def __call__(self) -> Any:
        from pareflow.serving.app import assembled

        found = partial(source, data_dir=Path(os.environ.get(NODE_DATA_DIR, self.data_dir)))
        sources = [found(target) for target in self.targets]
        return assembled(sources, self.plan, self.settings, found, self.most_sessions).asgi()


def serve(
    build: Build,
    scale: Scale,
    address: str | None,
    variables: Sequence[str],
    listening: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then, as after an error, take the application off the cluster.

    `address` is a cluster's; None starts one here. `variables` names what replicas take over from this
    environment; credentials are each node's own. Raises: MissingExtraError, InputError; as the models'
    sources; EnvironmentUnfitError where no cluster answers, no node holds a replica, or one does not begin.
    """
    try:
        import ray
        from ray import serve as ray_serve
    except ImportError as error:
        raise MissingExtraError(
            "`--engine ray` needs the extra `ray`",
            "`ray[serve]` is not installed",
            "Run `pip install 'pareflow[ray]'`",
        ) from error
    if scale.least > scale.most:
        raise InputError(
            "the least number of replicas must be at most the largest",
            f"got {scale.least} and {scale.most}",
            "Give --replicas LEAST MOST",
        )
    if address is not None:
        must_answer(address)
    models = [_model(target, build) for target in build.targets]
    settings = build.settings
    given = {name: os.environ[name] for name in variables if name in os.environ}
    ray.init(
        address,
        log_to_driver=False,
        logging_level="ERROR",
        include_dashboard=False,
        runtime_env={"env_vars": given},
    )
    try:
        most_sessions, processors = room_of(models, largest_node())
        ray_serve.start(http_options={"host": settings.host, "port": settings.port})
        _answer(replace(build, most_sessions=most_sessions), scale, processors, listening)
    finally:
        ray.shutdown()


def _answer(build: Build, scale: Scale, processors: int, listening: Callable[[str], None]) -> None:
    """Put the application on the cluster, and take it off at the end. Raises: EnvironmentUnfitError."""
    from ray import serve as ray_serve

    def application() -> Any:  # Ray takes a function for what makes the application, and no other callable
        return build()

    deployment = ray_serve.deployment(ray_serve.ingress(application)()).options(
        name=APPLICATION,
        ray_actor_options={"num_cpus": processors},
        autoscaling_config={
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.each,
        },
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until all is there it ends as Ctrl-C does
    try:
        _run(deployment.bind())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        listening(f"http://{build.settings.host}:{build.settings.port}")
        stop.wait()
    finally:
        ray_serve.delete(APPLICATION)


def _run(application: Any) -> None:
    """Raises: EnvironmentUnfitError where a replica does not begin."""
    from ray import serve as ray_serve

    try:
        ray_serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise EnvironmentUnfitError(
            "every replica must begin on its node",
            f"one does not: {str(error).strip().splitlines()[-1].rstrip('.')}",
            "Mend that, or see all of it with `--engine local` there",
        ) from error


@dataclass(frozen=True, slots=True)
class Model:
    """What decides how much of a node a model takes; of a language model `threads` are None: all of them."""

    threads: int | None
    sessions: int | None


def room_of(models: Sequence[Model], processors: int) -> tuple[int, int]:
    """The most sessions of each model in a replica on a node of so many processors, which models share
    equally; and how many of them all the sessions compute on.

    Raises: EnvironmentUnfitError where one session of each does not fit.
    """
    share = max(1, processors // len(models))
    most = max(1, share // max(model.threads or 1 for model in models))
    needed = sum(
        share if model.threads is None else model.threads * min(model.sessions or most, most)
        for model in models
    )
    if needed > processors:
        raise EnvironmentUnfitError(
            "a node must have the processors that a replica's sessions compute on",
            f"they compute on {needed}, and the largest node has {processors}",
            "Serve fewer models, or one that was judged with fewer threads, or add a larger node",
        )
    return most, needed


def _model(target: str, build: Build) -> Model:
    """What is to be served, as this machine sees it. Raises: as `Source.current`; InputError."""
    found = source(target, Path(build.data_dir))
    try:
        release = found.current()
    except (TransientError, TrackingError):
        last = found.last()
        if last is None:
            raise
        release = last
    document = verified(release.package)
    plan = build.plan or release.plan or ServingPlan()
    if "backend" not in document:
        return Model(None, 1)
    return Model(int(Step.from_json(document["backend"]).settings.get("threads", 1)), plan.sessions)
