"""How tasks are run: by Prefect, or as the plain functions that they wrap. The order is the flow's."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar

from prefect.tasks import Task

T = TypeVar("T")
R = TypeVar("R")


class Execution(Protocol):
    """Runs one task, or one task over many items; what they raise passes through."""

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        """The task's result."""

    def each(self, task: "Task[..., R]", items: Sequence[T], call: Callable[[T], tuple[Any, ...]]) -> list[R]:
        """The task's result per item, side by side; `call` gives the arguments for an item."""


class Orchestrated:
    """By Prefect: retried by their policy, and shown in its interface. Needs a flow run around it."""

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        return task(*arguments)

    def each(self, task: "Task[..., R]", items: Sequence[T], call: Callable[[T], tuple[Any, ...]]) -> list[R]:
        futures = [task.submit(*call(item)) for item in items]
        return [future.result() for future in futures]


class Plain:
    """As plain functions, each tried once."""

    def call(self, task: "Task[..., R]", *arguments: Any) -> R:
        return task.fn(*arguments)

    def each(self, task: "Task[..., R]", items: Sequence[T], call: Callable[[T], tuple[Any, ...]]) -> list[R]:
        with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
            return list(pool.map(lambda item: task.fn(*call(item)), items))


def waves(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """The items in their order, `size` at a time."""
    source = iter(items)
    while wave := list(islice(source, size)):
        yield wave
