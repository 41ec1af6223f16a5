"""What a search may choose from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

Pick = Callable[[str, Sequence[Any]], Any]
"""Takes the name of a choice and its options, smallest first; gives one of them."""


class Architecture(Protocol):
    """One option of every choice: a frozen record; equal ones are the same network."""

    @property
    def label(self) -> str:
        """Its options in one line, which no other architecture of its space has."""


A = TypeVar("A", bound=Architecture)


class Space(ABC, Generic[A]):
    """All architectures that share one supernet."""

    @abstractmethod
    def choose(self, pick: Pick) -> A:
        """The architecture that `pick` decides on, choice by choice; the choices are always the same."""

    def options(self, end: int) -> dict[str, Any]:
        """By the name of each choice, its smallest (0) or largest (-1) option."""
        found: dict[str, Any] = {}
        self.choose(lambda name, options: found.setdefault(name, options[end]))
        return found

    @property
    def largest(self) -> A:
        return self.choose(lambda _, options: options[-1])

    @property
    def smallest(self) -> A:
        return self.choose(lambda _, options: options[0])
