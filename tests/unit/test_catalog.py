"""Members: settings that come back, names that are suggested, and versions of code."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from pareflow.catalog import BACKENDS, TECHNIQUES, Member, _sources, find, installed_version, unknown
from pareflow.errors import SpecError
from pareflow.variant import Step

FAMILY: dict[str, type[Member]] = {}


class Shrink(Member):
    """Makes things smaller."""

    name: ClassVar[str] = "shrink"
    family: ClassVar[dict[str, type[Member]]] = FAMILY
    requires: ClassVar[tuple[str, ...]] = ("numpy",)

    share: float = Field(default=0.5, gt=0, lt=1, description="what goes")


class Abstract(Member):
    """Has no name of its own, so it is no member."""

    family: ClassVar[dict[str, type[Member]]] = FAMILY


class NeedsTheMoon(Shrink):
    name: ClassVar[str] = "needs_the_moon"
    requires: ClassVar[tuple[str, ...]] = ("numpy", "moon-runtime")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    installed_version.cache_clear()
    yield
    installed_version.cache_clear()


def test_family_holds_the_classes_that_name_themselves() -> None:
    assert {"shrink": Shrink, "needs_the_moon": NeedsTheMoon} == FAMILY
    assert {"static_int8", "fp16"} <= TECHNIQUES.keys()
    assert {"onnxruntime", "torch_eager", "openvino"} <= BACKENDS.keys()


def test_step_says_every_setting_defaults_included() -> None:
    assert Shrink().step == Step("shrink", {"share": 0.5})


@pytest.mark.parametrize("share", [0.25, "0.25"], ids=["number", "text"])
def test_equal_settings_have_one_spelling(share: object) -> None:
    assert find(FAMILY, Step("shrink", {"share": share}), "technique").step == Shrink(share=0.25).step


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (Step("shrnk"), "unknown technique 'shrnk'; did you mean 'shrink'?"),
        (Step("zzz"), "unknown technique 'zzz'; known are needs_the_moon, shrink"),
        (Step("shrink", {"shaer": 0.5}), "unknown key 'shaer'; did you mean 'share'?"),
        (Step("shrink", {"share": 1.5}), "share: should be less than 1, but got 1.5"),
        (Step("shrink", {"share": float("nan")}), "share: should be a finite number, but got nan"),
    ],
    ids=["name", "far name", "key", "range", "nan"],
)
def test_wrong_step_is_told_with_a_way_out(step: Step, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        find(FAMILY, step, "technique")
    assert caught.value.problems == [problem]


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        find(FAMILY, Step("shrink", {"share": 2, "more": 1}), "technique")
    assert len(caught.value.problems) == 2


def test_member_is_available_where_its_distributions_are() -> None:
    assert Shrink.unavailable() is None
    assert NeedsTheMoon.unavailable() == "not installed: moon-runtime"


def test_code_version_is_stable_and_covers_what_it_runs_on() -> None:
    assert Shrink.code_version() == Shrink.code_version()
    assert Shrink.code_version() != NeedsTheMoon.code_version()


@pytest.mark.parametrize(
    ("backend", "through"),
    [
        ("onnxruntime", {"packed_onnx.py", "packing.py", "range_coder.py"}),
        ("openvino", {"packed_openvino.py", "packing.py", "range_coder.py"}),
        ("torch_compile", {"autocast.py", "signature.py"}),
    ],
)
def test_code_version_is_of_modules_that_are_imported_from_their_package(
    backend: str, through: set[str]
) -> None:
    """`from pareflow.compiler import packed_onnx` counts, and so does what that imports."""
    member = BACKENDS[backend]
    found = _sources(Path(inspect.getfile(member)), member.__module__)
    assert through <= {path.name for path in found}


def test_absent_distribution_has_no_version() -> None:
    assert installed_version("moon-runtime") is None
    assert installed_version("numpy") is not None


def test_nothing_close_lists_what_is_known() -> None:
    assert unknown("x", ["beta", "alpha"], "letter") == "unknown letter 'x'; known are alpha, beta"
