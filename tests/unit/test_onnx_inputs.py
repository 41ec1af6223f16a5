"""ONNX files as users have them, on each backend that runs them, beside `onnx.reference`."""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch.nn import functional

from pareflow import network, workload
from pareflow.compiler import Backend, OnnxRuntime, OpenVino
from pareflow.compiler.backend import Session
from pareflow.compiler.onnxruntime import GraphLevel
from pareflow.errors import ExportError, UnsuitableError
from pareflow.model import DynamicInt8, Fp8, Int4, MixedInt8, NncfInt4, NncfInt8, StaticInt8, Technique
from pareflow.workload import Arrays, LoadedWorkload

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
BACKENDS: list[Backend] = [OnnxRuntime(), OpenVino()]
SETTINGS: list[Backend] = [*BACKENDS, OnnxRuntime(io_binding=True), OpenVino(static_shapes=True)]
RANDOM = np.random.default_rng(0)
ROWS = 40

Opened = Callable[..., tuple[Session, LoadedWorkload]]


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        operator, inputs.split(), outputs.split(), name=f"{operator}_{outputs}", **attributes
    )


def port(name: str, *sizes: int | str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, sizes)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: Mapping[str, Any],
    opset: int = 17,
) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def floats(*sizes: int) -> np.ndarray:
    return RANDOM.normal(size=sizes).astype(np.float32)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """The file on a backend as a run would open it, and its workload."""

    def on(backend: Backend, model: onnx.ModelProto, arrays: dict[str, np.ndarray], **settings: Any) -> Any:
        onnx.save_model(model, tmp_path / "given.onnx")
        np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
        given = {name: name for name in arrays}
        counts = {"calibration": 10, "search": 10}
        reference = {"model": "given.onnx", "arrays": "data.npz", "samples": given, "targets": None, **counts}
        loaded = workload.load({"onnx": {**reference, **settings}}, tmp_path)
        loaded.definition.check(loaded.example(1))
        folders = {name: tmp_path / name for name in ("onnx", "openvino", "artifact")}
        for folder in folders.values():
            folder.mkdir()
        network.save(loaded.definition.network(), "onnx", folders["onnx"])
        if backend.form == "openvino":
            network.convert(folders["onnx"], "openvino", loaded, folders["openvino"])
        backend.compile(folders[backend.form], folders["artifact"])
        return backend.load(folders["artifact"]), loaded

    return on


def expected(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """By the operators' own definitions, in numpy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = ReferenceEvaluator(model).run(None, feeds)
    return dict(zip([value.name for value in model.graph.output], outputs, strict=True))


def agree(ours: Arrays, theirs: Arrays) -> None:
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-4, err_msg=name)


def holds(opened: Opened, backend: Backend, model: onnx.ModelProto, **arrays: np.ndarray) -> Session:
    """The backend answers batches of 1, 3 and 5 as the reference does."""
    session, loaded = opened(backend, model, arrays)
    for batch_size in (1, 3, 5):
        feeds = loaded.example(batch_size)
        agree(session.run(feeds), expected(model, feeds))
    return session


backends = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.label)
settings = pytest.mark.parametrize("backend", SETTINGS, ids=lambda backend: backend.label)


WEIGHTS = {
    "kernel": floats(4, 2, 3, 3),
    "bias": floats(4),
    "scale": floats(4),
    "shift": floats(4),
    "mean": floats(4),
    "variance": np.abs(floats(4)) + 0.5,
    "matrix": floats(4, 3),
    "offset": floats(3),
}


def convolutional(opset: int) -> onnx.ModelProto:
    """Operators whose form changed between opsets 9 and 22, each as that opset has it."""
    weights: dict[str, np.ndarray] = dict(WEIGHTS)
    nodes = [
        node("Conv", "x kernel bias", "convolved", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "convolved scale shift mean variance", "normal"),
    ]

    def changed(operator: str, inputs: str, outputs: str, since: int, **settings: Any) -> None:
        """From opset `since` on the settings are inputs, before that attributes."""
        if opset >= since:
            names = [f"{operator}_{name}" for name in settings]
            weights.update(
                {name: np.asarray(value) for name, value in zip(names, settings.values(), strict=True)}
            )
            nodes.append(node(operator, " ".join([inputs, *names]), outputs))
        else:
            nodes.append(node(operator, inputs, outputs, **settings))

    bounds = {"min": np.float32(-1), "max": np.float32(1)}
    changed("Clip", "normal", "clipped", 11, **bounds)
    changed("Slice", "clipped", "sliced", 10, starts=[1], ends=[5], axes=[2])
    nodes.append(node("MaxPool", "sliced", "pooled", kernel_shape=[2, 2], strides=[2, 2]))
    changed("ReduceMean", "pooled", "averaged", 18, axes=[2, 3])
    nodes[-1].attribute.append(helper.make_attribute("keepdims", 1))
    changed("Squeeze", "averaged", "flat", 13, axes=[2, 3])
    nodes += [node("Gemm", "flat matrix offset", "logits"), node("Softmax", "logits", "y", axis=1)]
    return model(nodes, [port("x", "batch", 2, 6, 6)], [port("y", "batch", 3)], weights, opset)


def by_torch(x: np.ndarray) -> np.ndarray:
    """What `convolutional` gives (the reference's BatchNormalization takes opset 9's for training)."""
    w = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    found = functional.conv2d(torch.from_numpy(x), w["kernel"], w["bias"], padding=1)
    found = functional.batch_norm(found, w["mean"], w["variance"], w["scale"], w["shift"])
    found = functional.max_pool2d(found.clamp(-1, 1)[:, :, 1:5], 2).mean((2, 3))
    return (found @ w["matrix"] + w["offset"]).softmax(1).numpy()


@backends
@pytest.mark.parametrize("opset", range(9, 23))
def test_every_opset_runs(opened: Opened, backend: Backend, opset: int) -> None:
    session, loaded = opened(backend, convolutional(opset), {"x": floats(ROWS, 2, 6, 6)})
    for batch_size in (1, 5):
        feeds = loaded.example(batch_size)
        agree(session.run(feeds), {"y": by_torch(feeds["x"])})


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("opset", [9, 12])
def test_graph_of_an_opset_before_scales_per_channel_is_quantized(
    opened: Opened, opset: int, per_channel: bool
) -> None:
    """`axis` of DequantizeLinear came with opset 13, which the graph is raised to."""
    _, loaded = opened(OnnxRuntime(), convolutional(opset), {"x": floats(ROWS, 2, 6, 6)})
    made = StaticInt8(per_channel=per_channel).apply(convolutional(opset), loaded)
    feeds = loaded.example(7)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, feeds)[0], by_torch(feeds["x"]), atol=0.1)


@pytest.mark.parametrize("opset", [9, 22])
@backends
def test_weights_that_are_inputs_too_are_weights(opened: Opened, backend: Backend, opset: int) -> None:
    """As every file of IR version 3 has them: nobody need give them."""
    given = convolutional(opset)
    for weight in given.graph.initializer:
        kind = helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        given.graph.input.append(kind)
    given.ir_version = 3
    session, loaded = opened(backend, given, {"x": floats(ROWS, 2, 6, 6)})
    graph: Any = loaded.definition.network()
    assert [value.name for value in graph.graph.input] == ["x"]
    feeds = loaded.example(3)
    agree(session.run(feeds), {"y": by_torch(feeds["x"])})


@pytest.mark.parametrize("fixed", [1, 2, 4])
@settings
def test_fixed_batch_answers_any(opened: Opened, backend: Backend, fixed: int) -> None:
    """Piece by piece, the last one filled up; a reshape holds the graph to its batch."""
    nodes = [node("Reshape", "x shape", "flat"), node("MatMul", "flat matrix", "y")]
    weights = {"shape": np.asarray([fixed, 6]), "matrix": floats(6, 3)}
    given = model(nodes, [port("x", fixed, 2, 3)], [port("y", fixed, 3)], weights)
    session, loaded = opened(backend, given, {"x": floats(ROWS, 2, 3)})
    for batch_size in (1, 2, 3, 4, 7):
        x = loaded.example(batch_size)["x"]
        agree(session.run({"x": x}), {"y": x.reshape(-1, 6) @ weights["matrix"]})


@pytest.mark.parametrize("fixed", [1, 4])
@pytest.mark.parametrize(
    "technique",
    [
        StaticInt8(),
        StaticInt8(method="entropy"),
        MixedInt8(max_drop=1),
        Fp8(),
        NncfInt8(),
        NncfInt4(method="awq"),
    ],
    ids=lambda technique: technique.step.label,
)
def test_graph_of_a_fixed_batch_is_calibrated_in_batches_of_its_size(
    opened: Opened, technique: Technique, fixed: int, tmp_path: Path
) -> None:
    """Of ten calibration samples the last two are filled up to four; what is made answers any batch."""
    nodes = [node("Reshape", "x shape", "flat"), node("MatMul", "flat matrix", "y")]
    weights = {"shape": np.asarray([fixed, 6]), "matrix": floats(6, 16)}
    given = model(nodes, [port("x", fixed, 2, 3)], [port("y", fixed, 16)], weights)
    rows = RANDOM.uniform(-1, 1, (ROWS, 2, 3)).astype(np.float32)
    rows[:, 0, :2] = (-1, 1)  # NNCF takes the mean of all samples' ranges
    _, loaded = opened(OpenVino(), given, {"x": rows})
    made = technique.apply(network.load(technique.form, tmp_path / technique.form), loaded)
    (tmp_path / "made").mkdir()
    network.save(made, technique.gives, tmp_path / "made")
    x = loaded.example(7)["x"]
    found = network.runner(tmp_path / "made")({"x": x})["y"]
    np.testing.assert_allclose(found, x.reshape(-1, 6) @ weights["matrix"], atol=0.3)


@settings
def test_several_inputs_and_outputs_integers_among_them(opened: Opened, backend: Backend) -> None:
    """Token ids, a mask of truths and features: a sum, an index and a truth come out."""
    nodes = [
        node("Gather", "table ids", "embedded"),
        node("Cast", "mask", "kept", to=FLOAT),
        node("Unsqueeze", "kept last", "column"),
        node("Mul", "embedded column", "masked"),
        node("ReduceSum", "masked one", "summed", keepdims=0),
        node("Add", "summed features", "y"),
        node("ArgMax", "y", "best", axis=1, keepdims=0),
        node("Greater", "y zero", "positive"),
    ]
    inputs = [port("ids", "b", "n", kind=INT64), port("mask", "b", "n", kind=BOOL), port("features", "b", 4)]
    outputs = [port("y", "b", 4), port("best", "b", kind=INT64), port("positive", "b", 4, kind=BOOL)]
    constants = {"last": np.asarray([2]), "one": np.asarray([1]), "zero": np.float32(0)}
    given = model(nodes, inputs, outputs, {"table": floats(9, 4), **constants})
    holds(
        opened,
        backend,
        given,
        ids=RANDOM.integers(0, 9, (ROWS, 5)),
        mask=RANDOM.integers(0, 2, (ROWS, 5)).astype(bool),
        features=floats(ROWS, 4),
    )


@backends
def test_branches_run(opened: Opened, backend: Backend) -> None:
    """`If`: where a batch sums to more than nothing its values are doubled, else they are turned."""
    branches = [
        helper.make_graph([node(*parts)], name, [], [port("out", "b", 3)])
        for name, parts in {"more": ("Add", "x x", "out"), "less": ("Neg", "x", "out")}.items()
    ]
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        node("If", "positive", "y", then_branch=branches[0], else_branch=branches[1]),
    ]
    given = model(nodes, [port("x", "b", 3)], [port("y", "b", 3)], {"zero": np.float32(0)})
    session = holds(opened, backend, given, x=floats(ROWS, 3))
    for sign in (1, -1):
        x = np.full((2, 3), sign, np.float32)
        agree(session.run({"x": x}), {"y": 2 * x if sign > 0 else -x})


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3)])
@backends
def test_recurrent_state_goes_in_and_comes_out(
    opened: Opened, backend: Backend, operator: str, gates: int
) -> None:
    """Its batch is the second axis, and comes first here; a chunk goes on from the last."""
    states = ["h", "c"][: gates - 2]
    nodes = [
        node("Transpose", "x", "steps", perm=[1, 0, 2]),
        node(
            operator,
            f"steps W R B  {' '.join(states)}".replace("B  ", "B none "),
            f"all {' '.join(f'{state}_next' for state in states)}",
            hidden_size=5,
        ),
        node("Squeeze", "h_next first", "y"),
    ]
    nodes[1].input[4] = ""
    inputs = [port("x", "b", "steps", 3), *(port(state, 1, "b", 5) for state in states)]
    outputs = [port("y", "b", 5), *(port(f"{state}_next", 1, "b", 5) for state in states)]
    weights = {"W": floats(1, 5 * gates, 3), "R": floats(1, 5 * gates, 5), "B": floats(1, 10 * gates)}
    given = model(nodes, inputs, outputs, {"first": np.asarray([0]), **weights})
    session, loaded = opened(
        backend,
        given,
        {"x": floats(ROWS, 6, 3)},
        zeros={state: (1, 5) for state in states},
        batch_axes={name: 1 for state in states for name in (state, f"{state}_next")},
    )
    feeds = loaded.example(3)
    assert {name: array.shape for name, array in feeds.items()} == {
        "x": (3, 6, 3),
        **dict.fromkeys(states, (3, 1, 5)),
    }
    whole = session.run(feeds)
    reference = expected(given, {**feeds, **{state: np.zeros((1, 3, 5), np.float32) for state in states}})
    for name, array in reference.items():
        np.testing.assert_allclose(
            whole[name], array if name == "y" else np.moveaxis(array, 1, 0), atol=1e-4, err_msg=name
        )
    half = session.run({**feeds, "x": feeds["x"][:, :3]})
    rest = {"x": feeds["x"][:, 3:], **{state: half[f"{state}_next"] for state in states}}
    np.testing.assert_allclose(session.run(rest)["y"], whole["y"], atol=1e-4)


@backends
def test_loop_carries_its_state(opened: Opened, backend: Backend) -> None:
    """Three rounds of s ← s·M + x, from a state that is given."""
    body = helper.make_graph(
        [node("MatMul", "s M", "moved"), node("Add", "moved x", "s_out"), node("Identity", "go", "go_out")],
        "body",
        [port("i", kind=INT64), port("go", kind=BOOL), port("s", "b", 4)],
        [port("go_out", kind=BOOL), port("s_out", "b", 4)],
    )
    given = model(
        [node("Loop", "rounds always state", "y", body=body)],
        [port("x", "b", 4), port("state", "b", 4)],
        [port("y", "b", 4)],
        {"rounds": np.asarray(3), "always": np.asarray(True), "M": floats(4, 4) / 4},
    )
    holds(opened, backend, given, x=floats(ROWS, 4), state=floats(ROWS, 4))


@backends
def test_images_with_their_channels_last_run(opened: Opened, backend: Backend) -> None:
    """NHWC, as TensorFlow has them."""
    nodes = [
        node("Transpose", "x", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first kernel", "convolved"),
        node("Transpose", "convolved", "y", perm=[0, 2, 3, 1]),
    ]
    given = model(nodes, [port("x", "b", 6, 6, 2)], [port("y", "b", 4, 4, 3)], {"kernel": floats(3, 2, 3, 3)})
    holds(opened, backend, given, x=floats(ROWS, 6, 6, 2))


@settings
def test_open_axes_take_any_length(opened: Opened, backend: Backend) -> None:
    nodes = [node("Softmax", "x", "weights", axis=1), node("ReduceMax", "weights", "y", axes=[1], keepdims=0)]
    given = model(nodes, [port("x", "b", "length", 3)], [port("y", "b", 3)], {})
    session, _ = opened(backend, given, {"x": floats(ROWS, 7, 3)})
    for length in (1, 2, 9):
        x = floats(2, length, 3)
        agree(session.run({"x": x}), expected(given, {"x": x}))


@backends
def test_constant_inputs_are_given_once(opened: Opened, backend: Backend) -> None:
    """A rate or a threshold, such as voice detectors ask for with each request."""
    nodes = [node("Cast", "rate", "number", to=FLOAT), node("Div", "x number", "y")]
    given = model(nodes, [port("x", "b", 3), port("rate", kind=INT64)], [port("y", "b", 3)], {})
    session, loaded = opened(backend, given, {"x": floats(ROWS, 3)}, constants={"rate": 4})
    x = loaded.example(2)["x"]
    agree(session.run({"x": x}), {"y": x / 4})


def quantized(kind: QuantFormat, folder: Path, *operators: str) -> onnx.ModelProto:
    """The convolutional network in int8 (or these operators of it), as somebody else's tool left it."""
    onnx.save_model(convolutional(17), folder / "float.onnx")
    quant_pre_process(folder / "float.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    samples = iter([{"x": floats(1, 2, 6, 6)} for _ in range(20)])

    class Reader:
        def get_next(self) -> Arrays | None:
            return next(samples, None)

    quantize_static(
        folder / "prepared.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=kind,
        op_types_to_quantize=list(operators),
    )
    return onnx.load_model(folder / "int8.onnx")


@pytest.mark.parametrize("kind", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda kind: kind.name)
@backends
def test_quantized_files_run_in_int8(
    opened: Opened, backend: Backend, kind: QuantFormat, tmp_path: Path
) -> None:
    session, loaded = opened(backend, quantized(kind, tmp_path, "Conv"), {"x": floats(ROWS, 2, 6, 6)})
    feeds = loaded.example(5)
    np.testing.assert_allclose(session.run(feeds)["y"], by_torch(feeds["x"]), atol=0.1)
    assert session.ran().precision == "int8"


def operators_that_ran(backend: OnnxRuntime, compiled: Path, into: Path) -> set[str]:
    """Of the graph as ONNX Runtime runs it, once it has optimized what was compiled."""
    options = backend._options()
    if backend.saved:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(into / "ran.onnx")
    backend._session(compiled / "model.onnx", options)
    return {node.op_type for node in onnx.load_model(into / "ran.onnx").graph.node}


@pytest.mark.parametrize("kind", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda kind: kind.name)
@pytest.mark.parametrize("saved", [False, True], ids=["", "saved"])
@pytest.mark.parametrize("level", get_args(GraphLevel))
def test_quantized_files_say_int8_where_integers_are_computed_with(
    kind: QuantFormat, saved: bool, level: GraphLevel, tmp_path: Path
) -> None:
    """Pairs that only round are told from integer operators by the graph that ran."""
    onnx.save_model(quantized(kind, tmp_path, "Conv"), tmp_path / "model.onnx")
    backend = OnnxRuntime(graph_level=level, saved=saved)
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    backend.compile(tmp_path, compiled)
    ran = backend.load(compiled).ran()
    integers = "QLinearConv" in operators_that_ran(backend, compiled, tmp_path)
    assert ran.precision == ("int8" if integers else "float32")
    assert ("computed in fp32" in ran.notes) is not integers
    assert integers is (kind == QuantFormat.QOperator or level not in ("none", "basic"))


@pytest.mark.parametrize("kind", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda kind: kind.name)
def test_quantized_files_are_not_quantized_again(opened: Opened, kind: QuantFormat, tmp_path: Path) -> None:
    given = quantized(kind, tmp_path, "Conv")
    _, loaded = opened(OpenVino(), given, {"x": floats(ROWS, 2, 6, 6)})
    techniques = [StaticInt8(), MixedInt8(), DynamicInt8(), Int4(), Fp8(), NncfInt8(), NncfInt4()]
    forms = {form: network.load(form, tmp_path / form) for form in ("onnx", "openvino")}
    for technique in techniques:
        with pytest.raises(UnsuitableError, match=f"`{technique.name}` needs .* quantized already: "):
            technique.apply(forms[technique.form], loaded)


def test_what_openvino_lacks_is_named(opened: Opened, tmp_path: Path) -> None:
    """ONNX Runtime has integer operators of its own."""
    given = quantized(QuantFormat.QOperator, tmp_path)
    with pytest.raises(ExportError, match=r"it lacks .*com\.microsoft:QGemm \(node `Gemm_logits_quant`\)"):
        opened(OpenVino(), given, {"x": floats(ROWS, 2, 6, 6)})
    assert logging.getLogger("pareflow").isEnabledFor(logging.WARNING)  # OpenVINO leaves the root deaf
