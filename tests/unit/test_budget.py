"""Whether a variant fits a device: the activation plan, the facts of a graph, and the comparison."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pareflow.hardware.budget import NetworkFacts, fits, least_ms, least_slower
from pareflow.hardware.device_profile import DeviceProfile
from pareflow.measuring.liveness import Node, peak_bytes
from pareflow.measuring.network_facts import network_facts, tensors
from pareflow.spec import read_profile

ROOT = Path(__file__).parents[2]
KEYWORDS = ROOT / "../shared/data/models/kws_dscnn"
needs_keywords = pytest.mark.skipif(not KEYWORDS.is_dir(), reason="../shared/data is not here")


def nodes(*rows: tuple[str, str, str]) -> list[Node]:
    """`("Conv", "x w", "y")`: an operator, what it reads, what it makes."""
    return [Node(operator, tuple(reads.split()), tuple(makes.split())) for operator, reads, makes in rows]


def test_peak_of_a_chain_is_its_widest_neighbours() -> None:
    """x 16 B → h 32 B → y 8 B: at the first product 48, at the second 40; the weights do not count."""
    chain = nodes(("Gemm", "x w", "h"), ("Gemm", "h v", "y"))
    assert peak_bytes(chain, {"x": 16, "h": 32, "y": 8, "w": 999, "v": 999}, ["x"], ["y"]) == 48


def test_what_a_branch_still_needs_stays() -> None:
    """x is read again by the sum: at the second convolution x, a and b lie there, and the sum goes over b."""
    residual = nodes(("Conv", "x w", "a"), ("Conv", "a w", "b"), ("Add", "b x", "y"))
    assert peak_bytes(residual, dict.fromkeys("xaby", 10), ["x"], ["y"]) == 30


def test_elementwise_results_lie_over_their_input_unless_it_is_read_again() -> None:
    once = nodes(("Conv", "x w", "a"), ("Relu", "a", "y"))
    assert peak_bytes(once, dict.fromkeys("xay", 10), ["x"], ["y"]) == 20
    again = nodes(("Relu", "x", "a"), ("Sigmoid", "x", "b"), ("Concat", "a b", "y"))
    assert peak_bytes(again, {"x": 10, "a": 10, "b": 10, "y": 20}, ["x"], ["y"]) == 40


def test_of_a_quantized_tensor_only_the_bytes_lie_in_memory() -> None:
    """x 40 B becomes q 10 B; the convolution's 80 B are never there, only their 20 quantized ones."""
    rows = nodes(
        ("QuantizeLinear", "x s", "q"),
        ("DequantizeLinear", "q s", "d"),
        ("DequantizeLinear", "w s", "dw"),
        ("Conv", "d dw", "c"),
        ("Relu", "c", "r"),
        ("QuantizeLinear", "r s", "y"),
    )
    sizes = {"x": 40, "q": 10, "d": 40, "dw": 400, "c": 80, "r": 80, "y": 20}
    assert peak_bytes(rows, sizes, ["x"], ["y"]) == 10 + 20


def test_an_unknown_size_makes_the_peak_unknown() -> None:
    assert peak_bytes(nodes(("Conv", "x w", "y")), {"x": 1}, ["x"], ["y"]) is None


sizes = st.lists(st.integers(1, 1000), min_size=2, max_size=12)


@given(sizes, st.integers(2, 5), st.booleans())
def test_peak_lies_between_the_largest_tensor_and_all_and_grows_with_them(
    bytes_of: list[int], factor: int, skips: bool
) -> None:
    names = [f"t{i}" for i in range(len(bytes_of))]
    rows = [
        Node("Conv", (names[max(i - 2, 0)] if skips and i % 3 == 0 else names[i - 1],), (names[i],))
        for i in range(1, len(names))
    ]
    known = dict(zip(names, bytes_of, strict=True))
    peak = peak_bytes(rows, known, names[:1], names[-1:])
    assert peak is not None
    assert max(bytes_of) <= peak <= sum(bytes_of)
    assert peak_bytes(rows, {n: factor * b for n, b in known.items()}, names[:1], names[-1:]) == factor * peak


def product(*, dynamic: bool = False) -> onnx.ModelProto:
    """y = relu(x · w), x of (batch, 4), w of (4, 8), with a reshape that inference sees through or not."""
    weights = [numpy_helper.from_array(np.ones((4, 8), np.float32), "w")]
    made = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    if dynamic:  # as many rows as there are: known only when it runs
        made[1:] = [helper.make_node("NonZero", ["p"], ["where"]), helper.make_node("Relu", ["p"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])]
    graph = helper.make_graph(made, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_facts_of_a_product_are_what_paper_says() -> None:
    """2·2·4·8 operations; 128 bytes of weights; x of 32 bytes beside p of 64, and relu over p."""
    facts = network_facts(product(), {"x": np.zeros((2, 4), np.float32)})
    assert facts == NetworkFacts(128, 32 + 64, {"float32": 128}, ("MatMul", "Relu"))
    assert (
        NetworkFacts.from_json(
            {
                "weight_bytes": 128,
                "activation_bytes": 96,
                "operations": {"float32": 128},
                "operators": ["MatMul", "Relu"],
            }
        )
        == facts
    )


def test_what_inference_cannot_tell_is_seen_in_one_run() -> None:
    found = tensors(product(dynamic=True), {"x": np.ones((2, 4), np.float32)})
    assert found["where"] == ((2, 16), TensorProto.INT64)
    assert found["p"] == ((2, 8), TensorProto.FLOAT)


DEVICE = DeviceProfile.model_validate(
    {
        "name": "small",
        "memory_mib": 1,
        "storage_mib": 2,
        "cores": 1,
        "memory_gb_per_s": 0.5,
        "power_w": 2,
        "units": [
            {"name": "slow", "gops": {"float32": 1}, "backends": {"onnxruntime": "a"}},
            {
                "name": "fast",
                "gops": {"float32": 4, "int8": 8},
                "backends": {"onnxruntime": "b", "litert": "c"},
            },
        ],
        "operators": ["Conv", "Relu"],
        "sources": ["made up"],
    }
)
FACTS = NetworkFacts(2**19, 2**18, {"float32": 8_000_000}, ("Conv", "Relu"))


def test_a_small_variant_fits_and_its_estimates_say_so() -> None:
    """0.75 of 1 MiB; 8 million operations at 4 GFLOP/s take 2 ms, the weights 1.05 ms; 2 W × 2 ms."""
    fit = fits(1.5, FACTS, DEVICE, "onnxruntime")
    assert (fit.decision, fit.excess) == ("fits", "")
    assert {need.name: need.needs for need in fit.needs} == {
        "runtime": 0,
        "storage": 1.5,
        "memory": 0.75,
        "operators": 0,
        "least_ms": 2.0,
        "power": 2,
        "energy": 0.004,
    }
    assert [need.name for need in fit.needs if need.estimated] == ["memory", "least_ms", "power", "energy"]
    assert all("estimated" in need.words for need in fit.needs if need.estimated)
    assert fit.runs_by == "slow: a; fast: b"


@pytest.mark.parametrize(
    ("size_mib", "facts", "words"),
    [
        (25.0, FACTS, "its files take 25 MiB of the device's 2 MiB of storage"),
        (
            1.0,
            NetworkFacts(2**20, 2**18, {}, ("Conv",)),
            "its activations and weights need at least 1.25 MiB of 1 MiB of memory (estimated)",
        ),
        (1.0, NetworkFacts(0, 0, {}, ("Conv", "LSTM")), "the device lacks its operators LSTM"),
    ],
)
def test_what_is_too_much_is_named_with_its_limit(size_mib: float, facts: NetworkFacts, words: str) -> None:
    fit = fits(size_mib, facts, DEVICE, "onnxruntime")
    assert (fit.decision, fit.excess) == ("does not fit", words)


def test_weights_that_are_read_from_storage_need_no_memory() -> None:
    flash = DEVICE.model_copy(update={"weights_in_storage": True})
    assert fits(1, FACTS, flash, "litert").needed("memory") == 0.25


@pytest.mark.parametrize("facts", [None, NetworkFacts(1, None, {}, ("Conv",))])
def test_what_is_unknown_does_not_fit(facts: NetworkFacts | None) -> None:
    assert fits(1, facts, DEVICE, "onnxruntime").decision == "unknown"


def test_a_precision_that_no_unit_tells_a_rate_for_gives_no_time() -> None:
    integers = NetworkFacts(1, 1, {"int8": 8_000_000}, ("Conv",))
    assert least_ms(integers, DEVICE, "litert") == 1.0
    without = DEVICE.model_copy(update={"units": DEVICE.units[:1]})
    assert least_ms(integers, without, "onnxruntime") is None
    halves = NetworkFacts(1, 1, {"float16": 8_000_000}, ("Conv",))
    assert least_ms(halves, DEVICE, "litert") == 2.0  # it has no such rate: computed in 32 bits


def test_a_device_is_slower_by_the_worse_of_its_two_ceilings() -> None:
    """4 GFLOP/s against 40, 0.5 GB/s against 10: ten and twenty times; against 3 GB/s: ten and six."""
    assert least_slower(DEVICE, "onnxruntime", 40, 10) == 20
    assert least_slower(DEVICE, "onnxruntime", 40, 3) == 10
    assert least_slower(DEVICE, "onnxruntime", 2, 0.25) == 0.5  # it may be the faster one
    assert least_slower(DEVICE, "torch_eager", 40, 10) is None


@needs_keywords
def test_the_keyword_network_fits_the_microcontroller_in_int8() -> None:
    """Its largest layers are 25 × 5 × 64 values, in and out: 16,000 bytes of int8, 64,000 of fp32."""
    path = KEYWORDS / "kws_dscnn_int8_qdq.onnx"
    feeds = {"input_1": np.zeros((1, 49, 10, 1), np.int8)}
    profile = read_profile(ROOT / "configs/devices/microcontroller.yaml")
    facts = network_facts(onnx.load(path), feeds)
    assert (facts.activation_bytes, set(facts.operations)) == (16_000, {"int8"})
    wide = network_facts(onnx.load(KEYWORDS / "kws_dscnn_fp32.onnx"), feeds)
    assert (wide.activation_bytes, set(wide.operations)) == (64_000, {"float32"})
    fit = fits(path.stat().st_size / 2**20, facts, profile, "onnxruntime")
    assert fit.decision == "fits"
    assert fit.needed("least_ms") == pytest.approx(facts.operations["int8"] / 1.92e9 * 1000)


def test_a_backend_that_the_device_does_not_run_does_not_fit() -> None:
    fit = fits(1, FACTS, DEVICE, "torch_eager")
    assert fit.excess == "the device does not run it: small runs onnxruntime, litert"


def test_other_numbers_than_the_graphs_are_counted_as_bytes() -> None:
    """A quarter of the activations, and no more weights than the files hold."""
    assert FACTS.narrowest(0.25) == NetworkFacts(2**18, 2**16, {"int8": 8_000_000}, ("Conv", "Relu"))


@needs_keywords
def test_the_keyword_network_keeps_its_accuracy_in_int8() -> None:
    """On all 1000 samples, as the device would answer them: bytes in, bytes throughout."""
    stored = np.load(KEYWORDS / "kws01_eval.npz")
    session = ort.InferenceSession(KEYWORDS / "kws_dscnn_int8_qdq.onnx", providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"input_1": stored["features_int8"]})
    assert float((answers.argmax(axis=1) == stored["labels"]).mean()) >= 0.90
