"""How tasks are run: by Prefect, or as the plain functions that they wrap. The order is the flow's."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from pareflow.hardware.needs import Machine, Needs, this_machine

T = TypeVar("T")
R = TypeVar("R")


class Execution(Protocol):
    """Runs one task, or one task over many items; what they raise passes through."""

    where: str
    """The machines in words: "this machine" or "the cluster"."""

    def machines(self) -> Sequence[Machine]:
        """What tasks over many items run on now."""

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        """The task's result; it runs on this machine."""

    def each(
        self,
        task: "Task[..., R]",
        items: Sequence[T],
        call: Callable[[T], tuple[Any, ...]],
        needs: Callable[[T], Needs],
    ) -> list[R]:
        """The task's result per item, side by side; `call` gives the arguments for an item, `needs` what it
        takes: no more than the machines hold."""


class Orchestrated:
    """By Prefect: retried by their policy, and shown in its interface. Needs a flow run around it."""

    where = "this machine"

    def machines(self) -> Sequence[Machine]:
        return [this_machine()]

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        return task(*arguments)

    def each(
        self,
        task: "Task[..., R]",
        items: Sequence[T],
        call: Callable[[T], tuple[Any, ...]],
        needs: Callable[[T], Needs],
    ) -> list[R]:
        futures = [task.submit(*call(item)) for item in items]
        return [future.result() for future in futures]


class Plain:
    """As plain functions, each tried once."""

    where = "this machine"

    def machines(self) -> Sequence[Machine]:
        return [this_machine()]

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        return task.fn(*arguments)

    def each(
        self,
        task: "Task[..., R]",
        items: Sequence[T],
        call: Callable[[T], tuple[Any, ...]],
        needs: Callable[[T], Needs],
    ) -> list[R]:
        with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
            return list(pool.map(lambda item: task.fn(*call(item)), items))


def of_the_flow() -> Execution:
    """By Prefect, with what its task runner is: threads of this machine, or a Ray cluster."""
    context = FlowRunContext.get()
    assert context is not None  # it is called from a flow
    if isinstance(context.task_runner, ThreadPoolTaskRunner):
        return Orchestrated()
    from tasks.cluster import OnRay

    return OnRay()
