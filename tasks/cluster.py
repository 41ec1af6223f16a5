"""Building on a Ray cluster, through prefect-ray. All else stays on the flow's machine, which is judged."""

import os
import socket
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner
from prefect.tasks import Task

from pareflow.errors import (
    CrashedError,
    EnvironmentUnfitError,
    KilledError,
    MissingExtraError,
    TransientError,
    VariantError,
)
from pareflow.hardware.device import INTERRUPTED
from pareflow.hardware.needs import Machine, Needs, granted, lacking
from tasks.execution import Call, Orchestrated
from tasks.registries import without_secrets

R = TypeVar("R")

PATIENCE_S = 5.0
"""How long an address may take to answer: Ray itself would try for minutes, and then end the process."""

LOOK_S = 5.0
"""How often the cluster is looked at while it builds: a node may go that a step needs."""


def task_runner(address: str | None, variables: Sequence[str]) -> TaskRunner[Any]:
    """Prefect's runner on the cluster at `address`; None is the one that runs here, or one started for it.

    `variables` names what workers take over from this environment; credentials are each node's own.
    Raises: MissingExtraError; EnvironmentUnfitError where nothing answers.
    """
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise MissingExtraError(
            "`--runner ray` needs the extra `ray`",
            "`prefect-ray` is not installed",
            "Run `pip install 'pareflow[ray]'`",
        ) from error
    if address is not None:
        must_answer(address)
    given = {name: os.environ[name] for name in variables if name in os.environ}
    runner: TaskRunner[Any] = RayTaskRunner(
        address, {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": given}}
    )
    return runner


_AGAIN = "Run the same command again; what is finished is kept"


class OnRay(Orchestrated):
    """By Prefect and Ray: tasks over many items run on the nodes of the cluster that has what they need.

    Raises: EnvironmentUnfitError where nodes cannot reach the Prefect server.
    """

    where = "the cluster"

    def __init__(self) -> None:
        import ray

        api = get_current_settings().api.url or ""
        _must_be_reached(api, ray.util.get_node_ip_address(), [n["NodeManagerAddress"] for n in _nodes()])

    def machines(self) -> Sequence[Machine]:
        return [_machine(node["Resources"]) for node in _nodes()]

    def each(
        self, task: "Task[..., R]", calls: Sequence[Call], needs: Sequence[Needs]
    ) -> Sequence[R | VariantError]:
        """Raises: TransientError where the cluster fails, or loses the node that a step needs, and where the
        search is stopped by Ctrl-C."""
        import ray
        from prefect_ray.context import remote_options

        machines = self.machines()
        steps = [granted(need, machines) for need in needs]
        futures: list[Any] = []
        for call, step in zip(calls, steps, strict=True):
            with remote_options(**_options(step)):
                futures.append(task.submit(*call))
        try:
            self._wait({future.wrapped_future: step for future, step in zip(futures, steps, strict=True)})
            return [_ended(future) for future in futures]
        except ray.exceptions.RayError as error:
            raise _lost(f"Ray gave up: {type(error).__name__}: {str(error).splitlines()[0]}") from error

    def _wait(self, pending: dict[Any, Needs]) -> None:
        """Until all have ended, or are to be ended. Ray would wait for ever for a node that is gone."""
        import ray

        while pending:
            if INTERRUPTED.is_set():
                for future in pending:
                    ray.cancel(future, force=True)  # what it has begun dies with its worker
                raise TransientError(
                    "steps on the cluster must come to their end", "they were interrupted", _AGAIN
                )
            ended, _ = ray.wait(list(pending), num_returns=len(pending), timeout=LOOK_S)
            pending = {future: step for future, step in pending.items() if future not in ended}
            machines = self.machines()
            for step in pending.values():
                absent = lacking(step, machines, self.where)
                if absent or granted(step, machines) != step:
                    raise _lost(f"a step {absent or f'needs {step.cpus} processors, which no node has now'}")


def _ended(future: Any) -> Any:
    """What a step gave, or the error of one that took its worker along. Raises: what it raised; RayError."""
    from ray import exceptions

    try:
        return future.result()
    except exceptions.OutOfMemoryError as error:
        return KilledError(
            "a step must fit into the memory of its node",
            f"Ray ended it: {str(error).splitlines()[0].rstrip('.')}",
            "State `budget.memory_mib`, so that nodes hold fewer at a time, or drop the candidate",
        )
    except exceptions.WorkerCrashedError:
        return CrashedError(
            "a step must end by itself", "its worker on the cluster died", "Read the log of that node"
        )


def _lost(found: str) -> TransientError:
    return TransientError(
        "the cluster must keep the nodes that a step needs",
        found,
        _AGAIN,
    )


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def largest_node() -> int:
    """The processors of the cluster's largest node; 0 where none computes."""
    return max((_machine(node["Resources"]).cpus for node in _nodes()), default=0)


def _machine(resources: dict[str, float]) -> Machine:
    """Ray gives memory in bytes."""
    return Machine(
        int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), int(resources.get("memory", 0)) // 2**20
    )


def _options(step: Needs) -> dict[str, Any]:
    """What `ray.remote` takes; a memory that is not declared is not counted."""
    memory = {} if step.memory_mib is None else {"memory": step.memory_mib * 2**20}
    return {"num_cpus": step.cpus, "num_gpus": step.gpus, **memory}


def must_answer(address: str) -> None:
    """Raises: EnvironmentUnfitError where nobody is at `host:port` or `ray://host:port`."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port
        if host is None or port is None:
            return  # `auto` or `local`: Ray's own words
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except (OSError, ValueError) as error:
        raise EnvironmentUnfitError(
            "a Ray cluster must answer at the address that is given",
            f"{address} does not: {error}",
            "Start one with `ray start --head`, or name its address with --ray-address",
        ) from error


def _must_be_reached(api: str, own: str, addresses: Sequence[str]) -> None:
    """Raises: EnvironmentUnfitError where the server is this machine's alone, and nodes are elsewhere."""
    others = sorted(set(addresses) - {own})
    if others and urlsplit(api).hostname in ("127.0.0.1", "localhost", "::1"):
        raise EnvironmentUnfitError(
            "every node of the cluster must reach the Prefect server",
            f"it is at {without_secrets(api)}, and {', '.join(others)} is another machine",
            "Start `prefect server start --host 0.0.0.0` and set PREFECT_API_URL",
        )
