"""How much a network computes and moves, how much of the machine that is, and what binds it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.hardware import ceilings as instrument
from pareflow.hardware import probe
from pareflow.measuring.operators import profiled
from pareflow.measuring.roofline import bound, placed, roofline
from pareflow.measuring.work import (
    ATTENTION,
    CONVOLUTION,
    PRODUCTS,
    RECURRENT,
    TURNED,
    flops,
    moved_bytes,
    work,
)
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

MACHINE = {"threads": 1, "matrix_gflops": 100.0, "copy_gb_per_s": 20.0}
Shapes = list[list[int]]
shapes = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)
OPERATORS = sorted({"ConvTranspose", *PRODUCTS, *TURNED, *CONVOLUTION, *ATTENTION, *RECURRENT})
BY_HEADS = 2 * (2 * 4 * 5 * 7 * 8) + 2 * (2 * 4 * 5 * 7 * 6)
"""Of 2 samples with 4 heads: 5 queries by 7 keys of 8, and their sums of values of 6."""


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "expected"),
    [
        ("MatMul", [[2, 3], [3, 5]], [[2, 5]], 2 * 2 * 3 * 5),
        ("MatMul", [[7, 2, 3], [3, 5]], [[7, 2, 5]], 7 * 2 * 2 * 3 * 5),
        ("MatMul", [[2, 3], [7, 3, 5]], [[7, 2, 5]], 7 * 2 * 2 * 3 * 5),
        ("MatMul", [[2, 3], [3]], [[2]], 2 * 2 * 3),
        ("Gemm", [[2, 3], [5, 3], [5]], [[2, 5]], 2 * 2 * 3 * 5),
        ("Gemm", [[3, 2], [5, 3], [5]], [[2, 5]], 2 * 2 * 3 * 5),
        ("Conv", [[1, 4, 8, 8], [6, 4, 3, 3], [6]], [[1, 6, 8, 8]], 2 * 6 * 64 * 4 * 9),
        ("Conv", [[1, 4, 8, 8], [4, 1, 3, 3]], [[1, 4, 8, 8]], 2 * 4 * 64 * 9),  # depthwise
        ("QLinearConv", [[1, 4, 8, 8], [], [], [6, 4, 1, 1], [], [], [], []], [[1, 6, 8, 8]], 2 * 6 * 64 * 4),
        ("ConvTranspose", [[1, 4, 8, 8], [4, 6, 2, 2]], [[1, 6, 16, 16]], 2 * 4 * 64 * 6 * 4),
        ("Attention", [[1, 5, 8], [8, 24], [24]], [[1, 5, 8]], 2 * 5 * 8 * 24 + 2 * (2 * 5 * 5 * 8)),
        ("Attention", [[2, 4, 5, 8], [2, 4, 7, 8], [2, 4, 7, 6]], [[2, 4, 5, 6]], BY_HEADS),
        ("Attention", [[2, 4, 5, 8], [2, 2, 7, 8], [2, 2, 7, 6]], [[2, 4, 5, 6]], BY_HEADS),  # shared keys
        ("Attention", [[2, 5, 32], [2, 7, 32], [2, 7, 24], [5, 7]], [[2, 5, 24]], BY_HEADS),  # masked
        ("Attention", [[2, 4, 5, 8]] * 3 + [[5, 9], [2, 4, 4, 8], [2, 4, 4, 8]], [[2, 4, 5, 8]], None),
        ("Attention", [[5, 8], [8, 24]], [[5, 8]], None),
        ("Attention", [[2, 5, 32]], [[2, 5, 24]], None),
        ("LSTM", [[9, 1, 3], [1, 16, 3], [1, 16, 4], [1, 32]], [[9, 1, 1, 4]], 2 * 9 * (16 * 3 + 16 * 4)),
        ("Relu", [[2, 3]], [[2, 3]], None),
        ("Conv", [[1, 4, 8, 8]], [[1, 6, 8, 8]], None),  # its weights are not told
        ("Constant", [], [[1]], None),
    ],
)
def test_flops_by_hand(operator: str, inputs: Shapes, outputs: Shapes, expected: int | None) -> None:
    assert flops(operator, inputs, outputs) == expected


@given(st.sampled_from(OPERATORS), shapes, shapes)
def test_flops_of_shapes_that_no_operator_has_raise_nothing(
    operator: str, inputs: Shapes, outputs: Shapes
) -> None:
    found = flops(operator, inputs, outputs)
    assert found is None or found >= 0


def test_bytes_are_moved_once_but_by_views_and_look_ups() -> None:
    assert moved_bytes("Conv", parameters=100, activations=20, output=3) == 123
    assert moved_bytes("Gather", parameters=10**9, activations=8, output=64) == 128
    assert moved_bytes("Reshape", parameters=0, activations=64, output=64) == 0


def test_work_of_a_request_is_summed_by_operator() -> None:
    found = work(
        [node("Gemm", [[1, 3], [4, 3]], [[1, 4]], 48, 12, 16)] * 2 + [node("Relu", [[4]], [[4]], 0, 16, 16)]
    )
    assert found == {"Gemm": {"flops": 48, "bytes": 152}, "Relu": {"flops": None, "bytes": 32}}


def node(name: str, inputs: Shapes, outputs: Shapes, *sizes: int) -> Mapping[str, Any]:
    """A `Node` event, as ONNX Runtime 1.32 writes it."""
    named = zip(("parameter_size", "activation_size", "output_size"), map(str, sizes), strict=True)
    shapes = {"input_type_shape": inputs, "output_type_shape": outputs}
    typed = {key: [{"float": shape} for shape in value] for key, value in shapes.items()}
    return {"args": {"op_name": name, **dict(named), **typed}}


def test_work_of_the_tiny_network_is_told_whole_though_its_weights_are_packed(
    forms: Callable[[str], Mapping[Form, Path]], load_tiny: Callable[[str], LoadedWorkload]
) -> None:
    """A convolution of 3×3 to 8 channels of 8×8, then 512 → 4: packed weights would be missing.

    ONNX Runtime computes whole vectors of channels: with AVX-512, 16 of which 8 are padding.
    """
    found = profiled("onnxruntime", forms("images")["onnx"], load_tiny("images").example(1), threads=1)
    assert found["work"]["flops"] in {2 * channels * 64 * 9 + 2 * 512 * 4 for channels in (8, 16)}
    gemm = next(row for row in found["operators"] if "Gemm" in row["name"])
    assert gemm["bytes"] == 4 * (512 * 4 + 4 + 512 + 4)
    assert 0 < found["work"]["counted_share"] <= 1


def test_a_share_of_the_ceilings_by_hand() -> None:
    """4 GFLOP and 100 MB in 50 ms: 80 GFLOP/s of 100, and 2 GB/s of 20."""
    found = placed(MACHINE, flops=4 * 10**9, moved=10**8, took_ms=50)
    assert found == {
        "flops": 4 * 10**9,
        "bytes": 10**8,
        "intensity": pytest.approx(40),
        "gflops": pytest.approx(80),
        "gb_per_s": pytest.approx(2),
        "matrix_share": pytest.approx(0.8),
        "copy_share": pytest.approx(0.1),
        "bound": "compute",
    }


@pytest.mark.parametrize(
    ("matrix", "copy", "expected"),
    [
        (0.8, 0.1, "compute"),
        (0.1, 0.8, "memory"),
        (0.6, 0.9, "memory"),
        (0.1, 0.2, "overhead"),
        (0.1, 3.0, "overhead"),  # three times what memory delivers: caches did
        (0.9, 3.0, "compute"),
        (None, 0.8, "memory"),
        (None, 0.1, None),
        (0.1, None, None),
        (None, None, None),
    ],
)
def test_bound_is_the_ceiling_that_is_near(
    matrix: float | None, copy: float | None, expected: str | None
) -> None:
    assert bound(matrix, copy) == expected


@given(st.floats(1, 1e12), st.floats(1, 1e12), st.floats(1e-3, 1e4), st.floats(1.01, 100))
def test_what_takes_longer_uses_less_of_the_machine(
    computed: float, moved: float, took_ms: float, slower: float
) -> None:
    now, then = (placed(MACHINE, int(computed), int(moved), ms) for ms in (took_ms, took_ms * slower))
    assert then["matrix_share"] < now["matrix_share"]
    assert then["copy_share"] < now["copy_share"]
    assert then["intensity"] == now["intensity"]


def test_roofline_says_it_in_words_and_for_each_operator() -> None:
    row = {"name": "Conv", "ms": 40.0, "flops": 4 * 10**9, "bytes": 10**8}
    work_of_all = {"flops": 4 * 10**9, "bytes": 10**8, "counted_share": 0.9}
    found = roofline(MACHINE, work_of_all, [row], inference_ms=50)
    assert found["words"] == (
        "Inference uses 80% of the machine's matrix rate and moves 10% of what its memory copies:"
        " bound by computing."
    )
    assert found["ridge"] == 5
    assert found["operators"][0]["gflops"] == pytest.approx(100)
    assert found["counted_share"] == 0.9


def test_unknown_work_has_no_share_and_no_words() -> None:
    found = roofline(MACHINE, {"flops": None, "bytes": None, "counted_share": 0}, [], inference_ms=50)
    assert {
        found[name] for name in ("intensity", "gflops", "gb_per_s", "matrix_share", "bound", "words")
    } == {None}


def test_ceilings_are_those_of_far_more_than_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instrument, "TRIES", 1)
    monkeypatch.setattr(instrument, "SIZE", 64)
    with monkeypatch.context() as patch:
        patch.setattr(instrument, "LEAST_MIB", 1)
        patch.setattr(probe, "cache_bytes", lambda: None)
        found = instrument.ceilings(threads=1)
    assert found["threads"] == 1
    assert found["matrix_gflops"] > 0
    assert found["copy_gb_per_s"] > 0
    monkeypatch.setattr(probe, "memory_limit_mib", lambda: None)
    monkeypatch.setattr(probe, "cache_bytes", lambda: 2**30)
    monkeypatch.setattr(probe, "memory_mib", lambda: 2**20)
    assert instrument._copied_bytes() == 8 * 2**30
    monkeypatch.setattr(probe, "memory_mib", lambda: 1024)
    assert instrument._copied_bytes() == 128 * 2**20
    monkeypatch.setattr(probe, "memory_mib", lambda: 2**20)
    monkeypatch.setattr(probe, "cache_bytes", lambda: None)
    assert instrument._copied_bytes() == 256 * 2**20
    monkeypatch.setattr(probe, "memory_limit_mib", lambda: 512)  # as a container of a large machine has
    assert instrument._copied_bytes() == 64 * 2**20


@pytest.mark.parametrize(("enough_s", "timed"), [(0.0, 3), (1e9, 30)])
def test_what_takes_long_is_timed_a_few_times(
    enough_s: float, timed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once more before, which does not count."""
    called = list[int]()
    monkeypatch.setattr(instrument, "ENOUGH_S", enough_s)
    assert instrument._best_s(lambda: called.append(1)) >= 0
    assert len(called) == 1 + timed
