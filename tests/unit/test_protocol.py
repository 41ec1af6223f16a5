"""The Open Inference Protocol: what a body says, what is wrong with it, and the way back."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pareflow.errors import BadOutputError, InputError
from pareflow.serving import protocol


def tensor(**changes: Any) -> dict[str, Any]:
    """An input of two rows of three, which `changes` mend; None takes a key away."""
    whole = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6], **changes}
    return {key: value for key, value in whole.items() if value is not None}


def body(*inputs: Any, raw: bytes = b"", **more: Any) -> tuple[bytes, str | None]:
    head = json.dumps({"inputs": list(inputs), **more}).encode()
    return head + raw, str(len(head)) if raw else None


def parse(*inputs: Any, raw: bytes = b"", **more: Any) -> protocol.Request:
    return protocol.parse(*body(*inputs, raw=raw, **more))


def raw(size: Any) -> Mapping[str, Any]:
    return {"data": None, "parameters": {"binary_data_size": size}}


def test_a_body_by_hand() -> None:
    """The example of the specification, with nested data besides flat data."""
    flat = parse(tensor(), id="42", outputs=[{"name": "y"}])
    nested = parse(tensor(data=[[1, 2, 3], [4, 5, 6]]))
    for found in (flat, nested):
        assert found.inputs["x"].dtype == np.float32
        assert found.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (flat.id, flat.outputs, nested.outputs) == ("42", ["y"], None)


def test_raw_tensors_lie_behind_the_json_in_the_order_of_the_inputs() -> None:
    first, second = np.array([1, 2], "<i4"), np.array([[0.5]], "<f8")
    found = parse(
        tensor(name="a", datatype="INT32", shape=[2], **raw(8)),
        tensor(name="b", datatype="INT32", shape=[1], data=[7]),
        tensor(name="c", datatype="FP64", shape=[1, 1], **raw(8)),
        raw=first.tobytes() + second.tobytes(),
    )
    assert [found.inputs[name].tolist() for name in "abc"] == [[1, 2], [7], [[0.5]]]


def test_texts_come_as_json_and_raw() -> None:
    """Raw: how long, in four bytes, the lowest first; then UTF-8."""
    texts = ["é", ""]
    packed = b"\x02\x00\x00\x00\xc3\xa9\x00\x00\x00\x00"
    as_json = parse(tensor(datatype="BYTES", shape=[2], data=texts))
    as_raw = parse(tensor(datatype="BYTES", shape=[2], **raw(len(packed))), raw=packed)
    assert as_json.inputs["x"].tolist() == as_raw.inputs["x"].tolist() == texts


def test_a_timeout_is_in_microseconds() -> None:
    assert parse(tensor(), parameters={"timeout": 2500}).timeout_s == 0.0025


def deep(levels: int) -> list[Any]:
    """Lists in lists, with a 7 in the innermost."""
    found: list[Any] = [7]
    for _ in range(levels):
        found = [found]
    return found


BAD: Mapping[str, tuple[Any, str]] = {
    "no name": (tensor(name=None), "must have a `name`"),
    "type": (tensor(datatype="FLOAT"), "must be one of BOOL, .*it is 'FLOAT'"),
    "type unhashable": (tensor(datatype=["FP32"]), "must be one of BOOL"),
    "shape": (tensor(shape=[2, -3]), "must be a list of whole numbers"),
    "shape of texts": (tensor(shape=["2", 3]), "must be a list of whole numbers"),
    "shape true": (tensor(shape=[True, 6]), "must be a list of whole numbers"),
    "too few": (tensor(data=[1, 2]), r"as its shape \(2, 3\) \(6\), but it has 2"),
    "no data": (tensor(data=None), "must have `data`, a list, but it is missing"),
    "data is a text": (tensor(data="abcdef"), "must have `data`, a list"),
    "null": (tensor(data=[1, 2, None, 4, 5, 6]), "must be FP32, but one is None"),
    "text among numbers": (tensor(data=[1, 2, "3", 4, 5, 6]), "must be FP32, but one is '3'"),
    "fraction": (tensor(datatype="INT8", data=[1, 2, 3, 4, 5, 0.5]), "must be INT8, but one is 0.5"),
    "too large": (tensor(datatype="INT8", data=[1, 2, 3, 4, 5, 300]), "must be INT8"),
    "negative": (tensor(datatype="UINT8", data=[1, 2, 3, 4, 5, -1]), "must be UINT8"),
    "number for a flag": (tensor(datatype="BOOL", data=[True, False, 1, 1, 1, 1]), "must be BOOL"),
    "infinite": (tensor(data=[1, 2, 3, 4, 5, 1e39]), "must be finite"),
    "too many axes": (tensor(shape=[1] * 65, data=[1]), "at most 64 axes, but its shape has 65"),
    "no array's shape": (tensor(shape=[0, 2**62, 4], data=[]), "`shape` of `x` must be one that an array"),
    "raw and data": (tensor(parameters={"binary_data_size": 0}), "as `data` or raw, but it comes as both"),
    "raw, not there": (tensor(**raw(24)), "24 of 0 are"),
    "raw size": (tensor(**raw("24")), "'24' of 0 are"),
    "parameters": (tensor(parameters=3), "`parameters` must be an object"),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_tensor_is_told(bad: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(bad)


@pytest.mark.parametrize(
    ("content", "length", "said"),
    [
        (b"", None, "must be JSON"),
        (b"[]", None, "must be a JSON object, but it is list"),
        (b'{"inputs": 3}', None, "`inputs` must be a list of objects, but it is int"),
        (b'{"inputs": [3]}', None, "`inputs` must be a list of objects"),
        (b'{"inputs": []}', None, "at least one tensor"),
        (b'{"inputs": [{"name": ' + b"[" * 1000 + b"]" * 1000 + b"}]}", None, "must have a `name`"),
        (b"{}", "x", "must be a number of bytes"),
        (b"{}", "3", "must be a number of bytes of the body"),
        (b"{}", "-1", "must be a number of bytes"),
        pytest.param(b"{}", "9" * 5000, "must be a number of bytes", id="more digits than Python reads"),
        (
            b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
            None,
            "must be JSON",
        ),
        (body(tensor(), id=3)[0], None, "`id` must be a text"),
        (body(tensor(), parameters={"timeout": 0})[0], None, "`timeout` must be a whole number"),
        (body(tensor(), parameters={"timeout": True})[0], None, "`timeout` must be a whole number"),
        (body(tensor(), parameters={"binary_data_output": 1})[0], None, "must be true or false"),
        (body(tensor(), outputs=[{}])[0], None, "an output must have a `name`"),
        (body(tensor(), tensor())[0], None, "given once, but `x` is there twice"),
    ],
)
def test_what_is_wrong_with_a_body_is_told(content: bytes, length: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        protocol.parse(content, length)


@pytest.mark.parametrize(
    ("kind", "shape", "content", "said"),
    [
        ("FP32", [2], b"\0" * 7, r"of shape \(2,\) must have 8 raw bytes, but it has 7"),
        ("FP32", [0, 2**62, 4], b"", "must be one that an array can have"),
        ("BYTES", [0, 2**63, 4], b"", "must be one that an array can have"),
        ("FP32", [1], np.array([np.nan], "<f4").tobytes(), "must be finite"),
        ("FP16", [1], np.array([np.inf], "<f2").tobytes(), "must be finite"),
        ("BOOL", [2], b"\x01\x02", "must be BOOL, 0 or 1, but one is 2"),
        ("BYTES", [1], b"\x05\x00\x00\x00abc", "the last one is cut"),
        ("BYTES", [1], b"\x05\x00", "the last one is cut"),
        ("BYTES", [1], b"\x01\x00\x00\x00\xff", "must be UTF-8"),
        ("BYTES", [2], b"\x01\x00\x00\x00a", "must have 2 texts, but it has 1"),
    ],
)
def test_what_is_wrong_with_raw_bytes_is_told(kind: str, shape: list[int], content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(tensor(datatype=kind, shape=shape, **raw(len(content))), raw=content)


def test_values_may_lie_deep() -> None:
    found = parse(tensor(shape=[2, 2], data=[*deep(900), [[8], 9], 10])).inputs["x"]
    assert found.tolist() == [[7, 8], [9, 10]]


def test_bytes_that_belong_to_no_tensor_are_told() -> None:
    with pytest.raises(InputError, match="3 bytes belong to none"):
        parse(tensor(), raw=b"abc")


def test_large_numbers_whose_sum_is_infinite_are_finite() -> None:
    assert np.isfinite(parse(tensor(datatype="FP64", data=[1e308] * 6)).inputs["x"]).all()


@pytest.mark.parametrize("kind", ["FP16", "FP32", "FP64"])
def test_null_among_numbers_is_nan_where_some_may_be_missing(kind: str) -> None:
    """Of whole numbers none is: they have no NaN."""
    given = body(tensor(datatype=kind, shape=[3], data=[1, None, 3]))
    found = protocol.parse(*given, missing=True).inputs["x"]
    assert np.array_equal(found, [1, np.nan, 3], equal_nan=True)
    infinity = np.array([np.inf], protocol.DTYPES[kind]).tobytes()
    given = body(tensor(datatype=kind, shape=[1], **raw(len(infinity))), raw=infinity)
    with pytest.raises(InputError, match="must be finite, but one is infinite"):
        protocol.parse(*given, missing=True)
    with pytest.raises(InputError, match="must be INT8, but one is None"):
        protocol.parse(*body(tensor(datatype="INT8", shape=[2], data=[1, None])), missing=True)


def test_only_outputs_that_there_are_may_be_asked_for() -> None:
    with pytest.raises(InputError, match="an output must be one of 'y', but `z` is not"):
        protocol.check_wanted(["y", "z"], {"y"})


@pytest.mark.parametrize("key", ["id", "parameters", "outputs"])
def test_null_is_as_if_it_were_left_out(key: str) -> None:
    more: Mapping[str, Any] = {key: None}
    found = parse({**tensor(), "parameters": None}, **more)
    assert (found.id, found.outputs, found.raw_by_default, found.timeout_s) == (None, None, False, None)


@pytest.mark.parametrize(("value", "error"), [(np.nan, BadOutputError), (-np.inf, InputError)])
def test_json_cannot_hold_nan_and_infinity_and_raw_bytes_can(value: float, error: type[Exception]) -> None:
    """NaN is the model's fault, and infinity may be meant: logits that are masked."""
    outputs = {"y": np.array([value])}
    with pytest.raises(error, match="`y` has"):
        protocol.render("m", "1", parse(tensor()), outputs)
    answer, head = protocol.render(
        "m", "1", parse(tensor(), parameters={"binary_data_output": True}), outputs
    )
    assert head is not None
    assert np.array_equal(np.frombuffer(answer[head:], "<f8"), outputs["y"], equal_nan=True)


NUMBERS = [name for name in protocol.DTYPES if name != "BYTES"]


@given(
    st.sampled_from(NUMBERS).flatmap(
        lambda name: arrays.arrays(
            protocol.DTYPES[name],
            arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False} if name.startswith("FP") else None,
        )
    ),
    st.booleans(),
)
def test_what_is_written_is_read_back(array: np.ndarray, binary: bool) -> None:
    """Every type, raw and as JSON: an answer's outputs as the inputs of another request."""
    wanted = protocol.Request({}, raw_by_default=binary)
    answer, head = protocol.render("m", "1", wanted, {"x": array})
    document = json.loads(answer[:head])
    again = json.dumps({"inputs": document["outputs"]}).encode()
    content = again + (answer[head:] if head is not None else b"")
    found = protocol.parse(content, None if head is None else str(len(again))).inputs["x"]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@given(st.lists(st.text(), max_size=5), st.booleans())
def test_texts_are_read_back(texts: list[str], binary: bool) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]  # JSON has no lone surrogates
    wanted = protocol.Request({}, raw_by_default=binary)
    answer, head = protocol.render("m", "1", wanted, {"x": np.array(texts, dtype=object)})
    document = json.loads(answer[:head])
    again = json.dumps({"inputs": document["outputs"]}).encode()
    content = again + (answer[head:] if head is not None else b"")
    found = protocol.parse(content, None if head is None else str(len(again)))
    assert found.inputs["x"].tolist() == texts


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=4)))
def test_whatever_bytes_come_are_read_or_refused(content: bytes, length: str | None) -> None:
    try:
        protocol.parse(content, length)
    except InputError:
        return


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                key: st.sampled_from([*protocol.DTYPES, "x"]) | JSON_VALUES
                for key in ("name", "datatype", "shape", "data", "parameters")
            },
        ),
        max_size=3,
    ),
    JSON_VALUES,
)
def test_whatever_json_comes_is_read_or_refused(inputs: Any, other: Any) -> None:
    for document in ({"inputs": inputs}, {"inputs": inputs, "outputs": other}, {"parameters": other}, other):
        try:
            protocol.parse(json.dumps(document).encode(), None)
        except InputError:
            continue
