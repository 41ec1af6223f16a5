"""Level 2, the compiler: the interface of what turns a network into an executable, and runs it."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from pareflow.catalog import BACKENDS, Member, find
from pareflow.network import Form
from pareflow.session import Session
from pareflow.variant import Step

__all__ = ["Backend", "Session", "backend_of", "place"]


def place(file: Path, into: Path) -> None:
    """Put a file into the folder `into` too: linked, or copied where the file system has no hard links."""
    try:
        os.link(file, into / file.name)
    except OSError:
        shutil.copy2(file, into / file.name)


class Backend(Member, ABC):
    """A runtime with its settings. One file per backend: `compile` once, `load` wherever it serves."""

    family: ClassVar[dict[str, type[Member]]] = BACKENDS
    form: ClassVar[Form]
    """The form it runs; the network is brought into it first."""

    threads: int = Field(default=1, ge=1, description="threads within one request")

    @property
    def prepares_shapes(self) -> bool:
        """Whether the first request of a shape may take far longer than those after it: something is compiled
        for it, or tried out. A server asks every size of batch first where it does.
        """
        return True

    @classmethod
    def devices(cls) -> Mapping[str, str]:
        """The devices that the runtime lists here, with their full names; empty where it lists none."""
        return {}

    @abstractmethod
    def compile(self, source: Path, into: Path) -> None:
        """Make the executable from the network in `source`, in the folder `into`. Runs nothing."""

    @abstractmethod
    def load(self, artifact: Path) -> Session:
        """Open what `compile` made. Threads may ask the session at once: each gets its own answer."""


def backend_of(step: Step) -> Backend:
    """The backend that `step` names, with its settings checked. Raises: SpecError."""
    found = find(BACKENDS, step, "backend")
    assert isinstance(found, Backend)  # what this family holds
    return found
