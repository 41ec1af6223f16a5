"""Packed storage: every bit comes back, in about as few bytes as the entropy says."""

import gc
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes, integer_dtypes
from onnx import TensorProto, helper, numpy_helper

from pareflow import network
from pareflow.compiler import OnnxRuntime, OpenVino, packed_onnx, packed_openvino, packing, range_coder
from pareflow.errors import StepFailedError
from pareflow.network import Form
from pareflow.workload import LoadedWorkload


def sparse_indices(count: int, zeros: float) -> np.ndarray:
    """Indices into 16 values, of which a share is zero: what pruning and k-means leave."""
    chance = np.random.default_rng(0)
    return np.where(chance.random(count) < zeros, 0, chance.integers(1, 16, count))


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def test_entropy_is_what_its_formula_says() -> None:
    """Three a, one b: 4 · (0.75 · log2(4/3) + 0.25 · 2) bits, and a table of two words of 16."""
    assert range_coder.entropy_bits(np.array([0, 0, 1, 0])) == pytest.approx(3 * math.log2(4 / 3) + 2 + 32)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_code_is_as_long_as_the_entropy_within_two_percent(zeros: float) -> None:
    symbols = sparse_indices(200_000, zeros)
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / len(symbols)
    bound = -(shares * np.log2(shares)).sum() * len(symbols) / 8
    assert bound <= len(range_coder.encode([symbols])) <= 1.02 * bound


def test_nearly_constant_symbols_take_far_less_than_a_bit_each() -> None:
    """One in a thousand: 0.0114 bits each by entropy, where Huffman's code takes 1."""
    symbols = (np.arange(500_000) % 1000 == 0).astype(np.int64)
    assert len(range_coder.encode([symbols])) < 0.03 * len(symbols) / 8


@given(
    st.lists(
        st.lists(st.integers(0, 300), min_size=1, max_size=40).map(lambda part: np.array(part * 250)),
        max_size=4,
    )
)
@settings(max_examples=8)
def test_streams_of_any_lengths_come_back(streams: list[np.ndarray]) -> None:
    """Up to 10,000 symbols: more than one lane, and lanes of different lengths."""
    found = range_coder.decode(range_coder.encode(streams))
    assert [part.tolist() for part in found] == [stream.tolist() for stream in streams]


@given(
    arrays(
        floating_dtypes(endianness="<") | integer_dtypes(endianness="<") | st.just(np.dtype(bool)),
        array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12),
    )
)
@settings(max_examples=12)
def test_any_array_comes_back_bit_for_bit(array: np.ndarray) -> None:
    """NaN, both zeros, infinities; no axis, and no element."""
    found, rest = packing.unpack(packing.pack({"w": array}, b"rest"))
    assert same_bits(found["w"], array)
    assert rest == b"rest"


def test_weights_without_repeats_come_back_by_their_bytes() -> None:
    weights = np.random.default_rng(0).standard_normal((300, 50)).astype(np.float32)
    content = packing.pack({"w": weights})
    assert same_bits(packing.unpack(content)[0]["w"], weights)
    assert len(content) < 0.93 * weights.nbytes  # signs and exponents repeat, the other bits do not


def test_few_values_take_their_codebook_and_their_entropy() -> None:
    values = np.linspace(-1, 1, 16, dtype=np.float32)
    indices = sparse_indices(100_000, 0.9)
    size = len(packing.pack({"w": values[indices]}))
    assert size < 1.05 * range_coder.entropy_bits(indices) / 8 + 200
    assert size < values[indices].nbytes / 36


def test_equal_arrays_are_kept_once() -> None:
    weights = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    once = len(packing.pack({"a": weights}))
    twice = packing.pack({"a": weights, "b": weights.copy(), "c": weights.reshape(100, 100)})
    assert len(twice) < 2.1 * once  # `c` has another shape, and is another array
    assert all(same_bits(found.reshape(-1), weights) for found in packing.unpack(twice)[0].values())


def test_content_that_does_not_come_back_is_refused() -> None:
    weights = np.arange(100, dtype=np.float32)
    content = packing.pack({"w": weights})
    packing.check({"w": weights}, b"", content)
    with pytest.raises(StepFailedError, match="w did not"):
        packing.check({"w": -weights}, b"", content)
    with pytest.raises(StepFailedError, match="the graph did not"):
        packing.check({"w": weights}, b"another", content)


def shared_weights(folder: Path) -> np.ndarray:
    """An ONNX graph `x @ w.T` in `folder`; its weights have few values."""
    values = np.linspace(-1, 1, 16, dtype=np.float32)
    weights: np.ndarray = values[sparse_indices(256 * 256, 0.9)].reshape(256, 256)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 256]) for name in ("x", "output")
    ]
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["output"]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / network.FILES["onnx"])
    return weights


def test_packed_graph_answers_as_the_plain_one_and_is_many_times_smaller(tmp_path: Path) -> None:
    """Also after the decoded weights are gone: the runtime has copied them."""
    weights = shared_weights(tmp_path)
    plain, packed = OnnxRuntime(), OnnxRuntime(packed=True)
    for name, backend in (("plain", plain), ("packed", packed)):
        (tmp_path / name).mkdir()
        backend.compile(tmp_path, tmp_path / name)
    session = packed.load(tmp_path / "packed")
    gc.collect()
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)}
    expected = plain.load(tmp_path / "plain").run(feeds)["output"]
    assert np.array_equal(session.run(feeds)["output"], expected)
    assert np.allclose(expected, feeds["x"] @ weights.T, atol=1e-4)
    sizes = [
        (tmp_path / "model.onnx").stat().st_size,
        (tmp_path / "packed" / packed_onnx.FILE).stat().st_size,
    ]
    assert sizes[0] > 30 * sizes[1]


LOADED = """
import sys
sys.modules |= dict.fromkeys(("onnx", "torch"))
from pathlib import Path
import numpy as np
from pareflow.compiler import OnnxRuntime
session = OnnxRuntime(packed=True).load(Path(sys.argv[1]))
print(session.run({"x": np.ones((1, 256), np.float32)})["output"].sum())
"""


def test_packed_graph_loads_where_there_is_neither_onnx_nor_torch(checkout: Path, tmp_path: Path) -> None:
    """As the registered model does where it serves."""
    weights = shared_weights(tmp_path)
    (tmp_path / "packed").mkdir()
    OnnxRuntime(packed=True).compile(tmp_path, tmp_path / "packed")
    command = [sys.executable, "-c", LOADED, str(tmp_path / "packed")]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(weights.sum()), rel=1e-3)


@pytest.mark.parametrize("cls", [OnnxRuntime, OpenVino])
@pytest.mark.parametrize("name", ["images", "texts"])
def test_trained_network_answers_the_same_packed(
    cls: type[OnnxRuntime] | type[OpenVino],
    name: str,
    forms: Callable[[str], Mapping[Form, Path]],
    load_tiny: Callable[[str], LoadedWorkload],
    tmp_path: Path,
) -> None:
    answers = []
    for packed in (False, True):
        into = tmp_path / str(packed)
        into.mkdir()
        backend = cls(packed=packed)
        backend.compile(forms(name)[backend.form], into)
        answers.append(backend.load(into).run(load_tiny(name).example(4)))
    assert all(np.array_equal(answers[0][key], answers[1][key]) for key in answers[0])


def test_packed_openvino_model_comes_back_byte_for_byte(
    forms: Callable[[str], Mapping[Form, Path]], tmp_path: Path
) -> None:
    source = forms("texts")["openvino"]
    packed_openvino.write(source / "model.xml", tmp_path / "packed")
    xml, weights = packed_openvino.read(tmp_path / "packed")
    assert xml == (source / "model.xml").read_bytes()
    assert weights == (source / "model.bin").read_bytes()
