"""What an executable takes, and how requests are fitted to it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.compiler import Backend, OnnxRuntime, OpenVino
from pareflow.errors import BadOutputError, InputError
from pareflow.network import Form
from pareflow.ports import Port, Ports, piecewise
from pareflow.workload import Arrays

Forms = Callable[[str], Mapping[Form, Path]]
TEXTS = Ports((Port("ids", "int64", (None, 12)), Port("mask", "int64", (None, 12))))


@given(batch=st.integers(1, 20), fixed=st.integers(1, 7))
def test_pieces_give_what_the_whole_would(batch: int, fixed: int) -> None:
    """Whatever the batch: each row answered once, in its place, by requests of the fixed size alone."""
    asked: list[int] = []

    def run(feeds: Arrays) -> Arrays:
        asked.append(len(feeds["x"]))
        return {"y": feeds["x"] * 2 + feeds["z"]}

    x = np.arange(batch * 2).reshape(batch, 2)
    assert np.array_equal(piecewise(run, {"x": x, "z": x}, fixed)["y"], x * 3)
    assert asked == [fixed] * -(-batch // fixed)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(1, 2, 6), (1, 1, 6), (1, 2, 6)], r"\(1, 2, 6\), \(1, 1, 6\)"),
        ([(2, 6), (2, 6), (2, 6)], r"\(2, 6\)"),
        ([(), (), ()], r"\(\)"),
    ],
    ids=["sizes differ", "no axis of the batch", "one number"],
)
def test_pieces_that_cannot_be_joined_are_told_by_output_and_sizes(
    shapes: list[tuple[int, ...]], said: str
) -> None:
    """As of a detector that suppresses in the graph, whose batch was fixed."""
    found = iter(shapes)
    with pytest.raises(BadOutputError, match=rf"`boxes` has the shapes {said}\. Pad it"):
        piecewise(lambda _: {"boxes": np.zeros(next(found))}, {"x": np.zeros((3, 4))}, 1)


@pytest.mark.parametrize(
    ("shapes", "batch_size"),
    [
        ([(None, 4)], None),
        ([(1, 4)], 1),
        ([(8, 4), (8,)], 8),
        ([(8, 4), (2, 4)], None),
        ([(8, 4), (None, 4)], None),
        ([None], None),
        ([()], None),
        ([], None),
    ],
)
def test_batch_is_fixed_where_every_input_says_so(
    shapes: list[tuple[int | None, ...] | None], batch_size: int | None
) -> None:
    ports = Ports(tuple(Port(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)))
    assert ports.batch_size == batch_size


IDS = np.zeros((3, 12), np.int64)
BAD: list[tuple[Arrays, str]] = [
    ({"tokens": IDS, "mask": IDS}, r"`ids` is missing, and there is no `tokens`"),
    ({}, r"`ids` is missing, and `mask` is missing"),
    ({"ids": IDS[:, :5], "mask": IDS}, r"`ids` is int64 \(3, 5\)"),
    ({"ids": IDS[0], "mask": IDS}, r"`ids` is int64 \(12\)"),
]


@pytest.mark.parametrize(("feeds", "said"), BAD)
@pytest.mark.parametrize(
    "backend", [OnnxRuntime(), OpenVino(), OpenVino(static_shapes=True)], ids=lambda backend: backend.label
)
def test_session_says_what_it_takes(
    backend: Backend, feeds: Arrays, said: str, forms: Forms, tmp_path: Path
) -> None:
    """The tiny transformer takes `ids`, and its exporter dropped no mask."""
    backend.compile(forms("texts")[backend.form], tmp_path)
    session = backend.load(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        session.run(feeds)
    assert "must hold `ids` int64 (any, 12), `mask` int64 (any, 12)" in str(caught.value)
    assert session.run({"ids": IDS, "mask": IDS, "more": IDS})["output"].shape == (3, 2)


def test_kind_is_told_once_the_runtime_refuses_it(forms: Forms, tmp_path: Path) -> None:
    OnnxRuntime().compile(forms("texts")["onnx"], tmp_path)
    session = OnnxRuntime().load(tmp_path)
    with pytest.raises(InputError, match=r"`ids` is float32 \(3, 12\)"):
        session.run({"ids": IDS.astype(np.float32), "mask": IDS})


def test_error_of_the_runtime_alone_goes_on_up() -> None:
    """Nothing is wrong with the request: it is not said to be."""

    def fails(feeds: Arrays) -> Arrays:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        TEXTS.fitted(fails)({"ids": IDS, "mask": IDS})
