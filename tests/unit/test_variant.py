"""Digests, steps, recipes and the ids of variants."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import UnsuitableError
from pareflow.variant import Recipe, Step, Variant, content, digest, file_digest, sources

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    scalars | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
settings = st.dictionaries(st.text(min_size=1), scalars | st.text(), max_size=4)
steps = st.builds(Step, st.text(min_size=1), settings)


def test_digest_is_sha256_of_compact_json() -> None:
    assert digest("a", {"b": 1}) == hashlib.sha256(b'["a",{"b":1}]').hexdigest()


@given(st.dictionaries(st.text(), documents, min_size=2))
def test_digest_ignores_the_order_of_keys(document: dict[str, object]) -> None:
    assert digest(document) == digest(dict(reversed(document.items())))


@given(documents)
def test_digest_tells_one_value_from_a_list_of_it(document: object) -> None:
    assert len({digest(document), digest([document]), digest(document, None)}) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_digest_refuses_what_is_no_json(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest(value)


@given(st.recursive(scalars | st.text() | st.binary(), st.lists, max_leaves=10))
def test_content_of_plain_values_is_as_python_writes_them(value: object) -> None:
    assert content(value) == repr(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2.5, "a", True], [np.int8(1), np.float64(2.5), np.str_("a"), np.bool_(True)]),
        (np.asarray(["a", 1.5], dtype=object), ["a", 1.5]),
        ([np.zeros((2, 3))], [np.zeros((3, 2)).T]),
        (np.asarray(("a", 1), dtype="O,i4")[()], ("a", np.int32(1))),
        ([np.datetime64("2020-01-01")], [np.datetime64("2020-01-01")]),
    ],
    ids=["scalars", "objects", "strides", "record", "date"],
)
def test_equal_values_have_equal_contents_however_numpy_holds_them(one: object, other: object) -> None:
    assert content(one) == content(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], ["1"]),
        (["a, b"], ["a", "b"]),
        ([["a"], "b"], [["a", "b"]]),
        ([np.zeros(2000)], [np.eye(1, 2000, 1000)[0]]),  # numpy's own repr leaves out the middle
        ([np.zeros(2)], [np.zeros((2, 1))]),
        ([np.zeros(2, np.int32)], [np.zeros(1, np.int64)]),
    ],
    ids=["type", "comma", "nesting", "middle", "shape", "dtype"],
)
def test_values_that_differ_have_contents_that_differ(one: object, other: object) -> None:
    assert content(one) != content(other)


@pytest.mark.parametrize("value", [object(), {"a": 1}, {1}, np.longdouble(1), Step("a")], ids=type)
def test_content_of_what_may_tell_its_address_is_refused(value: object) -> None:
    with pytest.raises(UnsuitableError, match=f"there is one of type `{type(value).__name__}`"):
        content([["a", value]])


def test_sources_are_the_digests_of_files_of_pareflow_by_their_paths(checkout: Path) -> None:
    paths = ("variant.py", "measuring/arena.py")
    assert sources(*paths) == [file_digest(checkout / "pareflow" / path) for path in paths]


def test_file_digest_is_of_the_bytes_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"abc")
    assert (
        file_digest(tmp_path / "one") == file_digest(tmp_path / "two") == hashlib.sha256(b"abc").hexdigest()
    )


@given(steps)
def test_step_comes_back_from_json(step: Step) -> None:
    assert Step.from_json(step.to_json()) == step


@pytest.mark.parametrize("document", ["fp16", {"fp16": None}, {"fp16": {}}], ids=["name", "null", "empty"])
def test_step_without_settings_has_three_spellings(document: object) -> None:
    assert Step.from_json(document) == Step("fp16")  # type: ignore[arg-type]


def test_step_of_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match="too many values"):
        Step.from_json({"fp16": {}, "static_int8": {}})


@given(st.lists(steps, max_size=3), steps)
def test_recipe_comes_back_from_json(techniques: list[Step], backend: Step) -> None:
    recipe = Recipe(tuple(techniques), backend)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_recipe_is_labelled_step_by_step() -> None:
    recipe = Recipe((Step("prune", {"sparsity": 0.3}),), Step("onnxruntime", {"threads": 2, "level": "all"}))
    assert recipe.label == "prune(sparsity=0.3) → onnxruntime(threads=2, level=all)"


def test_variant_knows_its_parent() -> None:
    original = Variant.original("data and code", Step("original"))
    child = original.then(Step("fp16"), "v1")
    assert original.parent is None
    assert child.parent == original.id


@pytest.mark.parametrize(
    "other",
    [
        Variant.original("other data", Step("original")).then(Step("fp16"), "v1"),
        Variant.original("data", Step("original")).then(Step("fp16", {"keep": 1}), "v1"),
        Variant.original("data", Step("original")).then(Step("bf16"), "v1"),
        Variant.original("data", Step("original")).then(Step("fp16"), "v2"),
        Variant.original("data", Step("original")).then(Step("fp16"), "v1").then(Step("fp16"), "v1"),
    ],
    ids=["data", "settings", "name", "code version", "twice"],
)
def test_variants_that_differ_have_different_ids(other: Variant) -> None:
    assert Variant.original("data", Step("original")).then(Step("fp16"), "v1").id != other.id
