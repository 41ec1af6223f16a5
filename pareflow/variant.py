"""What was made, from what, and how: steps, recipes, variants, and the digests that name them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.errors import UnsuitableError


def digest(*parts: Any) -> str:
    """The sha256 of JSON-like values, in hex: equal for equal content, whatever the order of keys."""
    return text_digest(
        json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    )


def text_digest(text: str) -> str:
    """The sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources(*names: str) -> list[str]:
    """The digests of files of pareflow, by their paths in it: what they find out depends on them."""
    return [file_digest(Path(__file__).parent / name) for name in names]


_PLAIN = {str, bytes, bool, int, float, complex, type(None)}
"""Whose repr tells all of them, and the same in every process."""


def content(value: Any) -> str:
    """What numpy keeps as objects, as a text: equal for equal types and values, and in every process.

    It takes texts, numbers, bytes, None, arrays, and lists and tuples of them. A numpy scalar is as Python's.
    Raises: UnsuitableError where there is anything else, whose repr may be its address.
    """
    if isinstance(value, np.ndarray | np.datetime64 | np.timedelta64) and not value.dtype.hasobject:
        return f"{value.dtype.str} {value.shape} {value.tobytes().hex()}"
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        inside = ", ".join(map(content, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if type(value) not in _PLAIN:
        raise UnsuitableError(
            "objects in arrays must be texts, numbers, bytes, None, or arrays, lists and tuples of them",
            f"there is one of type `{type(value).__name__}`",
            "Make it a text or a number",
        )
    return repr(value)


def array_bytes(array: np.ndarray) -> bytes:
    """An array's bytes; where those would be addresses, what lies there. Raises: UnsuitableError, as
    `content`."""
    return content(array).encode() if array.dtype.hasobject else array.tobytes()


@dataclass(frozen=True, slots=True)
class Step:
    """One technique, backend or policy by name, with its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`name(setting=value, …)`, as tables show it."""
        shown = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}({shown})" if shown else self.name

    def to_json(self) -> dict[str, Any]:
        return {self.name: dict(self.settings)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | str) -> "Step":
        if isinstance(document, str):
            return cls(document)
        ((name, settings),) = document.items()
        return cls(name, dict(settings or {}))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Ordered steps: techniques that change the network, then one backend that runs it."""

    techniques: tuple[Step, ...]
    backend: Step

    @property
    def label(self) -> str:
        return " → ".join(step.label for step in (*self.techniques, self.backend))

    def to_json(self) -> list[dict[str, Any]]:
        return [step.to_json() for step in (*self.techniques, self.backend)]

    @classmethod
    def from_json(cls, document: list[Any]) -> "Recipe":
        *techniques, backend = (Step.from_json(step) for step in document)
        return cls(tuple(techniques), backend)


@dataclass(frozen=True, slots=True)
class Variant:
    """A file tree in the store plus its lineage.

    `id` depends on content and recipe alone (the parent, the step, the code of the step), never on a
    clock or a path: the same work has the same name on every machine and in every run.
    """

    id: str
    parent: str | None
    step: Step

    @classmethod
    def original(cls, workload_digest: str, step: Step) -> "Variant":
        """The trained network as the workload gives it."""
        return cls(digest("original", workload_digest, step.to_json()), None, step)

    def then(self, step: Step, code_version: str) -> "Variant":
        """The variant that `step`, in this version of its code, makes of this one."""
        return Variant(digest(self.id, step.to_json(), code_version), self.id, step)
