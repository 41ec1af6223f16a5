"""The same server on Ray Serve: as many replicas as the load asks for, on as many nodes as there are.

Each replica is the application of `pareflow serve` with the same plan, so that its answers and refusals are
the same; Ray's proxy stands before them. It is for many nodes: Ray's proxy costs each request time
(`bench/serving.py peers`), which a tier of one machine does not have to take.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pareflow.errors import InputError, MissingExtraError
from pareflow.hardware import probe
from pareflow.serving.plan import ServingPlan
from pareflow.serving.settings import Settings
from tasks.cluster import must_answer

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
    """Makes the application where a replica runs, from the registry or the folder as that node sees it."""

    targets: Sequence[str]
    data_dir: str
    plan: ServingPlan | None
    settings: Settings

    def __call__(self) -> Any:
        from pareflow.serving.app import assembled
        from tasks.serving import source

        found = partial(source, data_dir=Path(os.environ.get(NODE_DATA_DIR, self.data_dir)))
        return assembled([found(target) for target in self.targets], self.plan, self.settings, found).asgi()


def serve(
    build: Build,
    scale: Scale,
    address: str | None,
    variables: Sequence[str],
    listening: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then take the application off the cluster.

    `address` is a cluster's; None starts one here. `variables` names what replicas take over from this
    environment; credentials are each node's own. Raises: MissingExtraError, InputError;
    EnvironmentUnfitError where no cluster answers.
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
    settings, stop = build.settings, threading.Event()
    given = {name: os.environ[name] for name in variables if name in os.environ}
    ray.init(
        address,
        log_to_driver=False,
        logging_level="ERROR",
        include_dashboard=False,
        runtime_env={"env_vars": given},
    )
    ray_serve.start(http_options={"host": settings.host, "port": settings.port})
    cores = (build.plan and build.plan.sessions) or probe.usable_cores()

    def application() -> Any:  # Ray takes a function for what makes the application, and no other callable
        return build()

    deployment = ray_serve.deployment(ray_serve.ingress(application)()).options(
        name=APPLICATION,
        ray_actor_options={"num_cpus": cores},
        autoscaling_config={
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.each,
        },
    )
    ray_serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    listening(f"http://{settings.host}:{settings.port}")
    stop.wait()
    ray_serve.delete(APPLICATION)
    ray.shutdown()
