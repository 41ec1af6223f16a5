"""The exception tree: exit codes, the three parts of a message, and the drawing in the docstring."""

import pickle
import re

import pytest

from pareflow import errors
from pareflow.errors import PareflowError, SpecError

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, PareflowError)
}
LEAVES = {name: cls for name, cls in CLASSES.items() if cls is not SpecError}


def test_the_drawing_shows_the_tree_as_it_is() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"^([│├└─ ]*)(\w+Error)\b", line):
            indent, name = len(found[1]), found[2]
            path = [(i, parent) for i, parent in path if i < indent]
            drawn[name] = path[-1][1] if path else "Exception"
            path.append((indent, name))
    assert drawn == {name: cls.__base__.__name__ for name, cls in CLASSES.items() if cls.__base__}


@pytest.mark.parametrize("cls", LEAVES.values(), ids=LEAVES)
def test_message_says_law_finding_and_way_out(cls: type[PareflowError]) -> None:
    error = cls("`n > 0` must hold", "n is 0", "Raise n")
    assert str(error) == "`n > 0` must hold, but n is 0. Raise n"
    assert (error.must, error.found, error.remedy) == ("`n > 0` must hold", "n is 0", "Raise n")


@pytest.mark.parametrize("cls", LEAVES.values(), ids=LEAVES)
def test_errors_travel_between_processes(cls: type[PareflowError]) -> None:
    error = pickle.loads(pickle.dumps(cls("law", "finding", "way out")))
    assert (type(error), str(error)) == (cls, "law, but finding. way out")


def test_spec_error_lists_every_problem_and_travels() -> None:
    error = pickle.loads(pickle.dumps(SpecError("a.yaml", ["one", "two"])))
    assert str(error).splitlines()[1:] == ["  - one", "  - two"]
    assert "it has 2 problems" in str(error)
    assert "it has 1 problem." in str(SpecError("a.yaml", ["one"]))


@pytest.mark.parametrize(
    ("base", "code"),
    [("InputError", 2), ("EnvironmentUnfitError", 4), ("TransientError", 4), ("VariantError", 1)],
)
def test_a_branch_shares_its_exit_code(base: str, code: int) -> None:
    branch = [cls for cls in CLASSES.values() if issubclass(cls, CLASSES[base])]
    assert {cls.exit_code for cls in branch} == {code}
