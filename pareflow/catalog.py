"""Name in YAML -> class: one dict per family of techniques, backends and policies.

A class enters its family's dict by being defined; `import pareflow` defines them all.
"""

import ast
import contextlib
import functools
import importlib.metadata
import inspect
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pareflow.errors import SpecError
from pareflow.variant import Recipe, Step, digest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Member(BaseModel):
    """One member of a family. The class is its settings: frozen, typed, checked when made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    family: ClassVar[dict[str, type["Member"]]]
    requires: ClassVar[tuple[str, ...]] = ()
    """The distributions that this member runs on; their versions are part of its code version."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "name" in vars(cls):
            cls.family[cls.name] = cls

    @property
    def step(self) -> Step:
        """This member as a step: its name, and every setting, defaults included."""
        return Step(self.name, self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """`name(setting=value, …)`, as tables show it: what differs from the defaults."""
        return Step(self.name, self.model_dump(mode="json", exclude_defaults=True)).label

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this member cannot run here, or None if it can."""
        absent = [name for name in cls.requires if installed_version(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def unfit(self) -> str | None:
        """Why these settings are pointless on this machine, or None."""
        return None

    @property
    def mixes_samples(self) -> bool:
        """Whether an answer depends on the rest of its batch, as where one scale is taken of all of it."""
        return False

    def gpus(self) -> int:
        """How many GPUs it computes on while it is built or runs."""
        return int(getattr(self, "device", "cpu") == "cuda")

    @classmethod
    def prepare(cls) -> None:
        """Make what all its variants need, once and outside their time limits. Raises: PareflowError."""

    @classmethod
    def code_version(cls) -> str:
        """A digest of the source file, of what it imports from its own package, and of what it runs on."""
        return _code_version(cls)

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        """The member with these settings. Raises: pydantic.ValidationError."""
        return cls.model_validate(settings or {})


@functools.cache
def _code_version(cls: type[Member]) -> str:
    sources = _sources(Path(inspect.getfile(cls)), cls.__module__)
    texts = [path.read_text() for path in sorted(sources)]
    return digest(texts, {name: installed_version(name) for name in cls.requires})


def _sources(path: Path, module: str) -> set[Path]:
    """The file of a module, and those of its level that it imports, one through another."""
    level = ".".join(module.split(".")[:2])
    root = path.parents[module.count(".") - 2] if module.count(".") > 1 else path.parent
    found, open_ends = set[Path](), [path]
    while open_ends:
        source = open_ends.pop()
        found.add(source)
        imports = _imported(source.read_text())
        inside = [name.removeprefix(f"{level}.") for name in imports if name.startswith(f"{level}.")]
        files = [root / f"{name.replace('.', '/')}.py" for name in inside]
        open_ends += [file for file in files if file.exists() and file not in found]
    return found


def _imported(source: str) -> list[str]:
    """What a source imports from: each module, and each name in it, which may be a module too."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}" for node in found for alias in node.names]
    return [str(node.module) for node in found] + names


BUILDS = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
"""Distributions that give the same package; the first one that is installed counts."""


@functools.cache
def installed_version(distribution: str) -> str | None:
    """The installed version, or None. Asks the metadata: a folder `mlflow/` makes `find_spec` lie."""
    for name in BUILDS.get(distribution, (distribution,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


TECHNIQUES: dict[str, type[Member]] = {}
BACKENDS: dict[str, type[Member]] = {}
POLICIES: dict[str, type[Member]] = {}
WORKLOADS: dict[str, type[Member]] = {}


def find(family: dict[str, type[Member]], step: Step, kind: str) -> Member:
    """The member that `step` names, with its settings checked.

    Raises: SpecError, listing every problem of the step.
    """
    if step.name not in family:
        raise SpecError(f"the {kind} '{step.name}'", [unknown(step.name, family, kind)])
    try:
        return family[step.name].from_settings(step.settings)
    except ValidationError as error:
        fields = family[step.name].model_fields
        raise SpecError(f"the {kind} '{step.name}'", [problem(e, fields) for e in error.errors()]) from error


def members(recipe: Recipe) -> list[Member]:
    """The techniques of a recipe, then its backend, with their settings checked.

    Raises: SpecError, with every problem of every step.
    """
    placed = [(TECHNIQUES, step, "technique") for step in recipe.techniques]
    found, problems = [], []
    for family, step, kind in [*placed, (BACKENDS, recipe.backend, "backend")]:
        try:
            found.append(find(family, step, kind))
        except SpecError as error:
            known = f"{step.name}: " if step.name in family else ""
            problems += [known + text for text in error.problems]
    if problems:
        raise SpecError(recipe.label, problems)
    return found


def complete(recipe: Recipe) -> Recipe:
    """The recipe with every setting said, defaults included. Raises: SpecError."""
    *techniques, backend = (member.step for member in members(recipe))
    return Recipe(tuple(techniques), backend)


def unknown(name: str, known: Any, kind: str) -> str:
    """`unknown X 'nam'; did you mean 'name'?`"""
    close = get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"unknown {kind} '{name}'" + (
        f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(sorted(map(str, known)))}"
    )


def problem(error: "ErrorDetails", fields: Any) -> str:
    """One pydantic error as `where: law, but got input`, with a suggestion where a key is unknown."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        prefix = f"{where}: " if len(error["loc"]) > 1 else ""
        return prefix + unknown(str(error["loc"][-1]), fields, "key")
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        known = re.findall(r"'([^']+)'", str(error["ctx"]["expected"]))
        return f"{where.removesuffix('.[key]')}: {unknown(error['input'], known, 'name')}"
    if error["type"] == "missing":
        return f"{where}: must be given"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    return f"{where}: {error['msg'].removeprefix('Input ')}, but got {error['input']!r}"
