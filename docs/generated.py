"""The reference as the code gives it, in Markdown, when the pages are built. None of it is committed."""

import ast
import dataclasses
import importlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import typer
from packaging.requirements import Requirement

import pareflow  # noqa: F401  (fills the catalog)
from docs.settings import models, table
from docs.words import prose, rows
from flows import cli
from flows.cli import options
from pareflow import errors, gate, measurement
from pareflow.catalog import BACKENDS, POLICIES, TECHNIQUES, WORKLOADS, Member
from pareflow.errors import PareflowError
from pareflow.measuring.quality import SAYS
from pareflow.spec import PipelineSpec

ROOT = Path(__file__).parents[1]
MARK = r"<!-- generated: (\w+) -->"
"""Where a page takes in one of `PARTS`."""


def commands() -> Iterator[str]:
    """Every command: how it is called, what it does, its arguments and options."""
    for path, command in leaves(typer.main.get_command(cli.app), ("pareflow",)):
        context = typer.Context(command, info_name=" ".join(path))
        yield f"\n## `{' '.join(path)}`\n\n{prose(command.help)}\n"
        yield f"```text\n{context.get_usage().removeprefix('Usage: ')}\n```\n"
        yield from rows(("option", "what it is"), (_option(one, context) for one in command.params))


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it; groups are gone through."""
    inner: Mapping[str, Any] = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, one in inner.items():
        yield from leaves(one, (*path, name))


def _option(parameter: Any, context: Any) -> tuple[str, str]:
    called, what = parameter.get_help_record(context) or (parameter.name, "")
    return f"`{called}`", what


def exit_codes() -> Iterator[str]:
    """What the command exits with, from the constants of the command line and the classes of errors."""
    told = {
        0: "done; of `optimize`: a variant met the SLA and was registered",
        PareflowError.exit_code: "an error of a kind that has no code of its own",
        errors.InputError.exit_code: "bad input; the message says what to mend",
        options.NOTHING_MET: "finished; the answer is no: nothing met the SLA, a verdict does not "
        "hold, or the champion stays where it is",
        options.UNFIT: "the environment is not fit: a missing extra, a busy machine, no disk, no server",
        options.INTERRUPTED: "interrupted; run the same command again: what is finished is kept",
    }
    yield from rows(("code", "what it says"), ((str(code), what) for code, what in told.items()))


def error_classes() -> Iterator[str]:
    """Every error that is raised on purpose, with its exit code; the tree is the module's own drawing."""
    yield f"```text\n{(errors.__doc__ or '').strip()}\n```\n"
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    known = [cls for cls in found if issubclass(cls, PareflowError)]
    cells = ((f"`{cls.__name__}`", str(cls.exit_code), prose(cls.__doc__)) for cls in known)
    yield from rows(("class", "exit code", "what it says"), cells)


def files() -> Iterator[str]:
    """Every YAML file beside the pipeline's: what the code reads by `spec.read_part`, found in its source."""
    for package in ("pareflow", "tasks", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for name, what in _read_in(ast.parse(path.read_text())):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                heading = re.sub(r"^(an?|the) ", "", what)
                yield f"\n## {heading[0].upper()}{heading[1:]}\n"
                yield from models(getattr(importlib.import_module(module), name), "###")


def _read_in(source: ast.Module) -> Iterator[tuple[str, str]]:
    """The class of each file that is read there, and what such a file is called."""
    for node in ast.walk(source):
        match node:
            case ast.Call(
                func=ast.Name(id="read_part") | ast.Attribute(attr="read_part"),
                args=[ast.Name(id=name), _, ast.Constant(value=what), *_],
            ):
                yield name, str(what)


def members(family: Mapping[str, type[Member]]) -> Callable[[], Iterator[str]]:
    """A function that gives each member: its docstring, what it needs, its settings."""

    def told() -> Iterator[str]:
        for name, cls in sorted(family.items()):
            yield f"\n## `{name}`\n\n{prose(cls.__doc__)}\n"
            yield from _facts(cls)
            yield from table(cls)

    return told


def _facts(cls: type[Member]) -> Iterator[str]:
    """What a member works on, and what must be installed for it."""
    form, gives = getattr(cls, "form", None), getattr(cls, "gives", None)
    if form:
        yield f"Works on the network as `{form}`" + (f", gives `{gives}`.\n" if gives else ".\n")
    if cls.requires:
        yield f"Needs {', '.join(map(_distribution, cls.requires))}.\n"


def _distribution(name: str) -> str:
    extra = _extras().get(name.lower())
    return f"`{name}`" + (f" (extra `{extra}`)" if extra else "")


def _extras() -> dict[str, str]:
    """Which extra of pareflow brings a distribution."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        Requirement(line).name.lower(): extra
        for extra, lines in project["optional-dependencies"].items()
        for line in lines
    }


def metrics() -> Iterator[str]:
    """Every metric that comes with pareflow, and what its module says of itself in capitals."""
    for path in sorted((ROOT / "pareflow" / "metrics").glob("*.py")):
        if path.stem != "__init__":
            tree = ast.parse(path.read_text())
            said = [node for node in tree.body if isinstance(node, ast.Assign)]
            marks = [ast.unparse(node) for node in said if ast.unparse(node.targets[0]) in SAYS]
            yield f"\n## `{path.stem}`\n\n{prose(ast.get_docstring(tree))}\n"
            if marks:
                yield ", ".join(f"`{text}`" for text in marks) + ".\n"


def records(module: ModuleType, *names: str) -> Callable[[], Iterator[str]]:
    """A function that gives dataclasses as they stand in documents: their docstring, keys and types."""

    def told() -> Iterator[str]:
        for name in names:
            cls = getattr(module, name)
            yield f"\n### {name}\n\n{prose(cls.__doc__)}\n"
            cells = ((f"`{one.name}`", f"`{_type(one.type)}`") for one in dataclasses.fields(cls))
            yield from rows(("key", "type"), cells)

    return told


def _type(annotation: Any) -> str:
    """A type as it is written: `float | None`, `Literal['promote', 'reject']`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b[a-z_.]+\.(?=[A-Z])", "", str(annotation))


def documents() -> Iterator[str]:
    """The commands that print one document with `--json`."""
    for path, command in leaves(typer.main.get_command(cli.app), ("pareflow",)):
        if any("--json" in parameter.opts for parameter in command.params):
            yield f"- `{' '.join(path)}`"


PARTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "exit_codes": exit_codes,
    "error_classes": error_classes,
    "pipeline": lambda: models(PipelineSpec),
    "files": files,
    "techniques": members(TECHNIQUES),
    "backends": members(BACKENDS),
    "policies": members(POLICIES),
    "workloads": members(WORKLOADS),
    "metrics": metrics,
    "verdict": records(gate, "Verdict", "Check"),
    "environment": records(measurement, "Environment", "Ran"),
    "documents": documents,
}
"""What the pages of `reference/` take in, by name."""


def fill(text: str) -> str:
    """A page with each mark replaced by what the code gives. Raises: KeyError for an unknown part."""
    return re.sub(MARK, lambda found: "\n".join(PARTS[found[1]]()), text)
