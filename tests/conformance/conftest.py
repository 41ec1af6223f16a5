"""Every registered member, with its defaults and with each alternative of each setting in its schema."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import pareflow  # noqa: F401  (fills the catalog)
from pareflow.catalog import BACKENDS, POLICIES, TECHNIQUES, Member
from pareflow.compiler.torch_compile import TorchCompile
from pareflow.compiler.worker import WorkerBackend
from pareflow.model import ArchitectureSearch, LotteryTicket, Technique


def example(schema: Mapping[str, Any]) -> Any:
    """Some valid value of a required setting."""
    if "examples" in schema:
        return schema["examples"][0]
    if "enum" in schema or "const" in schema:
        return schema.get("enum", [schema.get("const")])[0]
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    kinds: dict[str, Any] = {
        "boolean": False,
        "string": "",
        "integer": math.floor((1 if low is None else low) + 1 if high is None else high - 1),
        "number": ((0 if low is None else low) + (1 if high is None else high)) / 2,
    }
    return kinds[schema["type"]]


def alternatives(schema: Mapping[str, Any]) -> list[Any]:
    """The other values of a choice."""
    choices = [True, False] if schema.get("type") == "boolean" else schema.get("enum", [])
    return [choice for choice in choices if choice != schema.get("default")]


def wrong(schema: Mapping[str, Any]) -> list[Any]:
    """Values that a setting must refuse: beyond each bound, of no choice, of another type."""
    beyond = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 0}
    out = [schema[bound] + step for bound, step in beyond.items() if bound in schema]
    return [*out, *(["no such choice"] if "enum" in schema else []), [1], float("nan")]


def required(cls: type[Member]) -> dict[str, Any]:
    schema = cls.model_json_schema()
    return {name: example(schema["properties"][name]) for name in schema.get("required", [])}


def configured(family: Mapping[str, type[Member]], *, twice: bool = False) -> Iterator[Any]:
    """Each member as pytest parameters; those that cannot run here say why. `twice`: it is made twice."""
    for name, cls in sorted(family.items()):
        plain = required(cls)
        yield pytest.param(cls(**plain), id=name, marks=_marks(cls(**plain), twice))
        for setting, schema in cls.model_json_schema().get("properties", {}).items():
            for value in alternatives(schema):
                changed = cls(**{**plain, setting: value})
                marks = _marks(changed, twice, alternative=True)
                yield pytest.param(changed, id=f"{name}-{setting}={value}", marks=marks)


def _marks(member: Member, twice: bool, *, alternative: bool = False) -> list[pytest.MarkDecorator]:
    reason = member.unavailable() or member.unfit()
    if reason:
        return [pytest.mark.skip(reason=reason)]
    # each test starts a worker or two, and the first makes the environment
    slow = isinstance(member, WorkerBackend)
    # each setting is another half minute of a C++ compiler
    slow |= isinstance(member, TorchCompile) and (twice or member != TorchCompile())
    # each of them trains several networks
    slow |= (twice or alternative) and isinstance(member, ArchitectureSearch | LotteryTicket)
    # a process of its own for each; the defaults' rows are quick enough together
    slow |= twice and alternative and isinstance(member, Technique)
    return [pytest.mark.slow] if slow else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`technique`, `backend` and `policy` run through the members that can run here, `cls` through all."""
    if "technique" in metafunc.fixturenames:
        metafunc.parametrize(
            "technique", list(configured(TECHNIQUES, twice="same_seed" in metafunc.function.__name__))
        )
    if "backend" in metafunc.fixturenames:
        again = any(words in metafunc.function.__name__ for words in ("twice", "given_as_onnx"))
        metafunc.parametrize("backend", list(configured(BACKENDS, twice=again)))
    if "policy" in metafunc.fixturenames:
        metafunc.parametrize("policy", list(configured(POLICIES)))
    if "cls" in metafunc.fixturenames:
        classes = {**TECHNIQUES, **BACKENDS, **POLICIES}
        metafunc.parametrize("cls", list(classes.values()), ids=list(classes))
    if "refused" in metafunc.fixturenames:
        metafunc.parametrize(
            ("member", "refused"),
            [
                pytest.param(cls, {**required(cls), setting: value}, id=f"{name}-{setting}={value}")
                for name, cls in {**TECHNIQUES, **BACKENDS, **POLICIES}.items()
                for setting, schema in cls.model_json_schema().get("properties", {}).items()
                for value in wrong(schema)
            ],
        )
