"""How tasks are run: by Prefect, or as the plain functions that they wrap. The order is the flow's."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from pareflow.errors import VariantError
from pareflow.hardware.needs import Machine, Needs, this_machine
from pareflow.isolation import interruptible

R = TypeVar("R")
Call = tuple[Any, ...]
"""The arguments of a task."""


class Execution(Protocol):
    """Runs one task, or one task over many items; what they raise passes through."""

    where: str
    """The machines in words: "this machine" or "the cluster"."""

    def machines(self) -> Sequence[Machine]:
        """What tasks over many items run on now."""

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        """The task's result; it runs on this machine."""

    def each(
        self, task: "Task[..., R]", calls: Sequence[Call], needs: Sequence[Needs]
    ) -> Sequence[R | VariantError]:
        """The task's result per call, side by side, or the error of one that took its worker along.

        `needs` is what each takes, together no more than the machines hold.
        """


class Orchestrated:
    """By Prefect: retried by their policy, and shown in its interface. Needs a flow run around it."""

    where = "this machine"

    def machines(self) -> Sequence[Machine]:
        return [this_machine()]

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        return task(*arguments)

    def each(
        self, task: "Task[..., R]", calls: Sequence[Call], needs: Sequence[Needs]
    ) -> Sequence[R | VariantError]:
        with interruptible():
            futures = [task.submit(*call) for call in calls]
            return [future.result() for future in futures]


class Plain:
    """As plain functions, each tried once."""

    where = "this machine"

    def machines(self) -> Sequence[Machine]:
        return [this_machine()]

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        return task.fn(*arguments)

    def each(self, task: "Task[..., R]", calls: Sequence[Call], needs: Sequence[Needs]) -> list[R]:
        with ThreadPoolExecutor(max_workers=max(1, len(calls))) as pool, interruptible():
            return list(pool.map(lambda call: task.fn(*call), calls))


def of_the_flow() -> Execution:
    """By Prefect, with what its task runner is: threads of this machine, or a Ray cluster."""
    context = FlowRunContext.get()
    assert context is not None  # it is called from a flow
    if isinstance(context.task_runner, ThreadPoolTaskRunner):
        return Orchestrated()
    from tasks.cluster import OnRay

    return OnRay()
