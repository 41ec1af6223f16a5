"""A workload of plain ONNX files and arrays, and ready-made variants of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pareflow import spec as specs
from pareflow import workload
from pareflow.errors import BadOutputError, ExportError, InputError, SplitError, WorkloadError
from pareflow.measuring.quality import Metric, predict, quality_of
from pareflow.model import Given
from pareflow.model.quantization.mixed_int8 import _Examined, session
from pareflow.serving.model import PackagedModel, as_json, kind_of
from pareflow.stages import jobs, optimization, searching, validation
from pareflow.stages.baseline import baseline, train
from pareflow.stages.run import Run
from pareflow.workload import LoadedWorkload

Load = Callable[..., LoadedWorkload]
SAMPLES = np.random.default_rng(0).integers(-50, 50, (400, 4)).astype(np.int8)
TARGETS = SAMPLES.astype(np.float32).argmax(1)


def network(integers: bool = False) -> onnx.ModelProto:
    """Four inputs to four outputs, unchanged; with `integers` in quarters, as a tool for devices makes it."""
    kind = TensorProto.INT8 if integers else TensorProto.FLOAT
    ports = [helper.make_tensor_value_info(name, kind, ["batch", 4]) for name in ("x", "y")]
    scale = numpy_helper.from_array(np.asarray(0.5, np.float32), "scale")
    zero = numpy_helper.from_array(np.asarray(3, np.int8), "zero")
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    if integers:
        nodes = [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("DequantizeLinear", ["same", "scale", "zero"], ["floats"]),
            helper.make_node("QuantizeLinear", ["floats", "scale", "zero"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [scale, zero] if integers else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    onnx.save_model(network(), tmp_path / "plain.onnx")
    onnx.save_model(network(integers=True), tmp_path / "integers.onnx")
    np.savez(tmp_path / "data.npz", samples=SAMPLES, targets=TARGETS)
    return tmp_path


@pytest.fixture
def loaded(files: Path) -> Load:
    def load(**changes: Any) -> LoadedWorkload:
        settings = {
            "model": "plain.onnx",
            "arrays": "data.npz",
            "input_name": "x",
            "scale": 0.5,
            "zero_point": 3,
            "variants": {"integers": "integers.onnx"},
        }
        return workload.load({"onnx": {**settings, **changes}}, files)

    return load


def test_rows_are_cut_and_what_is_left_over_decides(loaded: Load) -> None:
    splits = loaded(training=5, calibration=10, search=20).splits
    assert [len(s) for s in (splits.train, splits.calibration, splits.search)] == [5, 10, 20]
    assert len(splits.verdict) == 365


def test_inputs_are_scaled_from_their_zero_point(loaded: Load) -> None:
    definition = loaded().definition
    assert definition.preprocess(np.asarray([[3, 5, 1, 3]], np.int8))["x"].tolist() == [[0, 1, -1, 0]]
    unscaled = loaded(scale=1, zero_point=0).definition
    assert unscaled.preprocess(SAMPLES[:1])["x"].dtype == np.int8


def test_predictions_are_the_largest_outputs_position_or_the_outputs(loaded: Load) -> None:
    outputs = {"y": np.asarray([[0.1, 0.9]])}
    assert loaded().definition.postprocess(outputs).tolist() == [1]
    assert loaded(predicts="value").definition.postprocess(outputs).tolist() == [[0.1, 0.9]]


def two_outputs(second: str = "Identity") -> onnx.ModelProto:
    """The network with the outputs `a` and `b`, which is what this operator makes of the input."""
    names = ("x", "a", "b")
    x, *outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in names)
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node(second, ["x"], ["b"])]
    graph = helper.make_graph(nodes, "g", [x], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("output", "cosine", "error"), [("b", -1, 4), ("a", 1, 0), (None, 1, 0)])
def test_output_that_predicts_is_the_one_that_is_compared(
    loaded: Load, files: Path, output: str | None, cosine: float, error: float
) -> None:
    """By metrics of fidelity, and where layers are ranked: of a variant that turns `b` alone about."""
    onnx.save_model(two_outputs(), files / "plain.onnx")
    given = loaded(output=output)
    graphs = two_outputs(), two_outputs("Neg")
    original, found = (predict(session(graph), given, "search", outputs=True) for graph in graphs)
    judged = quality_of(found, given, "search", "v", "output_cosine", original)
    assert judged.value == pytest.approx(cosine)
    examined = _Examined(graphs[0], given, 50)
    assert examined.error(graphs[1]) == pytest.approx(error)


@pytest.mark.parametrize("metric", ["rmse", "mae", "spearman"])
@pytest.mark.parametrize("column", [True, False])
def test_one_number_per_sample_is_judged_as_that_number(
    loaded: Load, files: Path, metric: str, column: bool
) -> None:
    """A network gives a column of them, and so may the targets be."""
    targets = np.arange(400.0)
    np.savez(files / "data.npz", samples=SAMPLES, targets=targets[:, None] if column else targets)
    given = loaded(predicts="value")
    references = given.split("search").labels()
    predictions = given.definition.postprocess({"y": references.reshape(-1, 1)})
    assert predictions.shape == references.shape == (200,)
    best = 1 if metric == "spearman" else 0
    assert Metric.named(metric, files).value(predictions, references) == pytest.approx(best)


@pytest.mark.parametrize("sizes", [["batch", 1], ["batch"]], ids=["sigmoid", "label"])
def test_largest_of_one_output_is_refused(loaded: Load, files: Path, sizes: list[str | int]) -> None:
    """It is always the first: whatever a variant answers, its accuracy would be class 0's share."""
    one = network()
    one.graph.output.pop()
    one.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes))
    one.graph.node.pop()
    one.graph.initializer.append(numpy_helper.from_array(np.asarray([1]), "axes"))
    one.graph.node.append(helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=len(sizes) - 1))
    onnx.save_model(one, files / "plain.onnx")
    given = loaded()
    said = r"needs an output with two classes.* the output has the shape \(.*`predicts: value`"
    with pytest.raises(WorkloadError, match=said):
        given.definition.check(given.example(1))
    with pytest.raises(WorkloadError, match=said):
        given.definition.postprocess({"y": np.zeros([5, 1][: len(sizes)], np.float32)})
    numbers = loaded(predicts="value")
    numbers.definition.check(numbers.example(1))


def of_two_classes(folder: Path, labels: tuple[Any, Any]) -> None:
    """A network that is always right, were its classes called so."""
    graph = network()
    for port in (*graph.graph.input, *graph.graph.output):
        port.type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save_model(graph, folder / "plain.onnx")
    samples = np.random.default_rng(0).random((400, 2), np.float32)
    np.savez(folder / "data.npz", samples=samples, targets=np.asarray(labels)[samples.argmax(1)])


def described(folder: Path, metric: str, **settings: Any) -> dict[str, Any]:
    """What is found at `pareflow check`."""
    reference = {"onnx": {"model": "plain.onnx", "arrays": "data.npz", **settings}}
    return jobs.describe(reference, str(folder), metric)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
@pytest.mark.parametrize("labels", [(1, 2), (-1, 1), (0, 0.5), ("0", "1")], ids=str)
def test_labels_that_are_no_positions_in_the_output_are_refused(
    files: Path, labels: tuple[Any, Any], metric: str
) -> None:
    """Of 1 and 2, a sample would count as right only where the network errs."""
    of_two_classes(files, labels)
    with pytest.raises(WorkloadError, match=r"must be positions in the output: 0 to 1, but .*searchsorted"):
        described(files, metric)


@pytest.mark.parametrize(
    ("labels", "metric", "settings"),
    [
        ((0, 1), "accuracy", {}),
        ((False, True), "accuracy", {}),
        ((0.0, 1.0), "f1_macro", {}),
        ((1, 2), "agreement", {}),
        ((1, 2), "rmse", {}),
        ((1, 2), "accuracy", {"predicts": "value"}),
    ],
    ids=str,
)
def test_labels_are_what_the_metric_and_the_output_make_of_them(
    files: Path, labels: tuple[Any, Any], metric: str, settings: dict[str, Any]
) -> None:
    of_two_classes(files, labels)
    assert described(files, metric, **settings)["metric"] == "accuracy"  # the workload's own


def test_labels_of_an_output_of_any_size_are_whole_numbers_from_0_on(files: Path) -> None:
    of_two_classes(files, (0, 7))
    graph = onnx.load_model(files / "plain.onnx")
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    onnx.save_model(graph, files / "plain.onnx")
    described(files, "accuracy")
    of_two_classes(files, (-1, 1))
    onnx.save_model(graph, files / "plain.onnx")
    with pytest.raises(WorkloadError, match=r"whole numbers from 0 on, but .* the first is -1"):
        described(files, "accuracy")


def test_output_that_is_no_tensor_is_refused(loaded: Load, files: Path) -> None:
    """A list of mappings, as converters of scikit-learn write probabilities unless they are told."""
    mapped = network()
    mapped.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    mapped.graph.node.append(
        helper.make_node("ZipMap", ["y"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    )
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    mappings = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, number))
    mapped.graph.output.append(helper.make_value_info("chances", mappings))
    onnx.save_model(mapped, files / "plain.onnx")
    given = loaded()
    said = r"must be a tensor, but `chances` is a sequence.*'zipmap': False"
    with pytest.raises(WorkloadError, match=said):
        given.definition.check(given.example(1))


def test_samples_of_64_bits_are_read_in_the_inputs_32(loaded: Load, files: Path) -> None:
    np.savez(files / "data.npz", samples=SAMPLES / 3, targets=TARGETS)
    given = loaded(scale=1, zero_point=0)
    assert given.split("search").samples.dtype == np.float32  # type: ignore[union-attr]
    given.definition.check(given.example(1))
    several = loaded(scale=1, zero_point=0, input_name=None, samples={"x": "samples"})
    several.definition.check(several.example(1))


def test_array_of_another_kind_is_told_with_the_kind_that_the_graph_takes(loaded: Load) -> None:
    given = loaded(scale=1, zero_point=0)
    with pytest.raises(WorkloadError, match=r"`x` is int8 \(1, 4\).* Save the array of `x` as float32"):
        given.definition.check(given.example(1))


def test_data_may_lack_labels(loaded: Load) -> None:
    assert loaded(targets=None).split("search").targets is None


def test_every_file_counts_in_the_digest(loaded: Load, files: Path) -> None:
    before = loaded().digest
    changed = network(integers=True)
    changed.doc_string = "made again"
    onnx.save_model(changed, files / "integers.onnx")
    assert loaded().digest != before


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "absent.onnx"}, WorkloadError, r"absent\.onnx must be .*there is no such file"),
        ({"variants": {"a": "absent.onnx"}}, WorkloadError, r"there is no .*absent\.onnx"),
        ({"arrays": "absent.npz"}, WorkloadError, r"there is no .*absent\.npz"),
        ({"samples": "images"}, WorkloadError, "it lacks images, and holds samples, targets"),
        ({"search": 299}, WorkloadError, r"299 search samples .* data\.npz has 400 rows"),
    ],
    ids=["model", "variant", "arrays", "array", "nothing left"],
)
def test_what_is_missing_is_told(
    loaded: Load, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        loaded(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_name": "image"}, r"takes `x` float32 \(any, 4\).*`x` is missing, and there is no `image`"),
        ({"samples": "wide"}, r"`x` is float32 \(1, 5\)"),
        ({"scale": 1, "zero_point": 0}, r"`x` is int8 \(1, 4\)"),
        ({"scale": 1, "zero_point": 0, "input_name": None, "samples": {"q": "samples"}}, "there is no `q`"),
        ({"zeros": {"state": (2,)}}, "there is no `state`"),
        ({"constants": {"rate": 3}}, "there is no `rate`. It has `x`"),
        ({"constants": {"x": 3.0}}, r"constant of the input `x` must have its shape"),
        ({"batch_axes": {"z": 1}}, "there is no `z`. It has `x`, `y`"),
        ({"batch_axes": {"y": 2}}, r"one of its axes, 0 to 1.*says 2"),
        ({"output": "z"}, "`output` must be one of y, but it is `z`"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_the_graph_does_not_take_is_told_at_check(
    loaded: Load, files: Path, changes: dict[str, Any], said: str
) -> None:
    wide = np.random.default_rng(1).integers(-50, 50, (400, 5)).astype(np.int8)
    np.savez(files / "data.npz", samples=SAMPLES, targets=TARGETS, wide=wide)

    def checked() -> None:
        found = loaded(**changes)
        found.definition.check(found.example(1))

    with pytest.raises(WorkloadError, match=said):
        checked()


@pytest.mark.parametrize("targets", [350, 450])
def test_rows_without_a_target_each_are_told(loaded: Load, files: Path, targets: int) -> None:
    np.savez(files / "data.npz", samples=SAMPLES, targets=np.zeros(targets, np.int64))
    with pytest.raises(SplitError, match=f"has 400 samples and {targets} targets"):
        loaded()


def test_file_that_is_no_npz_is_told(loaded: Load, files: Path) -> None:
    (files / "data.npz").write_text("1,2,3")
    with pytest.raises(WorkloadError, match=r"data\.npz must be a \.npz file of plain arrays"):
        loaded()


def test_several_inputs_need_an_array_each(loaded: Load, files: Path) -> None:
    two = network()
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4]))
    onnx.save_model(two, files / "plain.onnx")
    with pytest.raises(WorkloadError, match=r"takes `x` float32 \(any, 4\), `z` float32.*INPUT: ARRAY"):
        loaded(input_name=None).example(1)


def test_records_of_several_inputs_survive_a_package(loaded: Load, files: Path) -> None:
    """What a caller sends as JSON, one mapping per sample, is what `preprocess` is given."""
    two = network()
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.INT64, ["batch"]))
    onnx.save_model(two, files / "plain.onnx")
    np.savez(files / "data.npz", a=SAMPLES.astype(np.float32), b=np.arange(400), targets=TARGETS)
    given = loaded(input_name=None, samples={"x": "a", "z": "b"}, scale=1, zero_point=0)
    samples = given.split("search").samples
    sent = json.loads(json.dumps(as_json(samples)))
    assert sent[0].keys() == {"x", "z"}
    package = PackagedModel.__new__(PackagedModel)
    package.document = {"samples": str(samples.dtype)}  # type: ignore[union-attr]
    again = package._raw(sent)
    for name, array in given.definition.preprocess(samples).items():
        np.testing.assert_array_equal(given.definition.preprocess(again)[name], array)
    sent[-1]["z"] = 0.5
    with pytest.raises(InputError, match=r"numbers that int64 holds, but one is 0\.5"):
        package._raw(sent)


PEOPLE = np.array([(3.5, "a", 1), (0.25, "b", 0)], [("age", "f8"), ("name", "U1"), ("kept", "i1")])


@pytest.mark.parametrize(
    "records",
    [
        PEOPLE.view(np.recarray),
        PEOPLE.astype(np.dtype([("kept", "i1"), ("name", "U1"), ("age", "f8")], align=True)),
        PEOPLE[["age", "kept"]],
    ],
    ids=["of pandas", "aligned", "some of the columns"],
)
def test_records_survive_a_package_whatever_numpy_prints_of_their_type(records: np.ndarray) -> None:
    package = PackagedModel.__new__(PackagedModel)
    package.document = {"samples": kind_of(records)}
    again = package._raw(json.loads(json.dumps(as_json(records))))
    assert package.fields == records.dtype.names
    for name in records.dtype.names or ():
        np.testing.assert_array_equal(again[name], records[name])  # type: ignore[call-overload]


def test_zeros_are_of_the_kind_that_the_graph_takes_in_a_package_too(loaded: Load, files: Path) -> None:
    """A count of the steps so far is a whole number."""
    two = network()
    two.graph.input.append(helper.make_tensor_value_info("steps", TensorProto.INT64, ["batch", 1]))
    onnx.save_model(two, files / "plain.onnx")
    given = loaded(zeros={"steps": [1]})
    given.definition.check(given.example(1))
    (package := files / "package").mkdir()
    again = workload.define(given.definition.pack(package).to_json(), package)
    for definition in (given.definition, again):
        steps = definition.preprocess(SAMPLES[:2])["steps"]
        assert (steps.dtype, steps.shape) == (np.dtype(np.int64), (2, 1))


class Kept(PackagedModel):
    """A package whose network answers so, and did when it was packaged."""

    def __init__(self, answers: dict[str, np.ndarray]) -> None:
        self.answers = answers

    def outputs(self, samples: Any) -> dict[str, np.ndarray]:
        return self.answers

    def postprocess(self, outputs: Any) -> np.ndarray:
        return np.zeros(2, int)

    def golden(self) -> dict[str, Any]:
        answers = {"label": ["cat", "dog"], "logits": [[1.0, -np.inf], [0.5, 2.0]], "kept": [True, False]}
        return {"samples": [], "outputs": answers, "predictions": [0, 0]}


def test_texts_masked_logits_and_booleans_are_repeated_by_a_package() -> None:
    answers = {name: np.asarray(values) for name, values in Kept({}).golden()["outputs"].items()}
    Kept(answers).check_golden()
    for name, values in answers.items():
        with pytest.raises(BadOutputError, match=f"`{name}` differs by"):
            Kept({**answers, name: values[::-1]}).check_golden()


def test_damaged_original_is_bad_input_and_a_damaged_variant_a_failed_row(files: Path) -> None:
    (files / "integers.onnx").write_bytes(b"not a graph")
    document = {
        "name": "pair",
        "workload": {
            "onnx": {
                "model": "plain.onnx",
                "arrays": "data.npz",
                "scale": 0.5,
                "variants": {"integers": "integers.onnx"},
            }
        },
        "sla": {"quality": {"metric": "accuracy", "max_drop": 0.1}},
        "candidates": [[{"given": {"network": "integers"}}, "onnxruntime"]],
    }
    config = files / "pipeline.yaml"
    run = Run.open(specs.parse(document, "the test's"), config, files / "data")
    train(run)
    (candidate,) = searching.first_rows(run)
    row = optimization.make(run, candidate)
    assert (row.status, row.id) == ("failed", None)
    assert "integers.onnx must be an ONNX file" in str(row.reason)
    (files / "plain.onnx").write_bytes(b"not a graph")
    with pytest.raises(WorkloadError, match=r"plain\.onnx must be an ONNX file") as caught:
        Run.open(specs.parse(document, "the test's"), config, files / "data")
    assert caught.value.exit_code == 2


def test_given_integers_take_and_give_floats(loaded: Load) -> None:
    """0.26 is nearest to 0.5 in halves, as 0.24 is to 0; the zero point drops out."""
    made = Given(network="integers").apply(network(), loaded())
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.asarray([[0.26, 0.24, -1.0, 7.1]], np.float32)})
    assert found.tolist() == [[0.5, 0.0, -1.0, 7.0]]


def test_given_has_the_constants_and_the_batch_axes_of_the_original(loaded: Load, files: Path) -> None:
    """A rate that never changes, and an output whose batch is its second axis."""

    def turned(factor: float) -> onnx.ModelProto:
        made = network()
        made.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.FLOAT, [1]))
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(factor, np.float32), "factor"))
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, "batch"]))
        del made.graph.node[:]
        steps = [("Mul", ["x", "rate"], "p"), ("Mul", ["p", "factor"], "q"), ("Transpose", ["q"], "y")]
        made.graph.node.extend(helper.make_node(name, inputs, [output]) for name, inputs, output in steps)
        return made

    for name, factor in (("plain", 1), ("integers", 2)):
        onnx.save_model(turned(factor), files / f"{name}.onnx")
    given = loaded(constants={"rate": 3.0}, batch_axes={"y": 1})
    original: Any = given.definition.network()
    made = Given(network="integers").apply(original, given)
    feeds = {"x": np.ones((2, 4), np.float32)}
    onnx.save_model(made, files / "integers.onnx")  # as another tool would fold and turn it
    again = Given(network="integers").apply(original, given)
    for graph, expected in ((original, 3.0), (made, 6.0), (again, 6.0)):
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        assert session.run(None, feeds)[0].tolist() == [[expected] * 4] * 2


def test_given_that_the_workload_does_not_name_is_told(loaded: Load) -> None:
    with pytest.raises(InputError, match=r"there is no `int4`\. Known are integers"):
        Given(network="int4").apply(network(), loaded())


def test_given_integers_without_a_scale_are_told(loaded: Load, files: Path) -> None:
    bare = network()
    for port in (*bare.graph.input, *bare.graph.output):
        port.type.tensor_type.elem_type = TensorProto.INT8
    onnx.save_model(bare, files / "integers.onnx")
    with pytest.raises(ExportError, match=r"must have a DequantizeLinear there.*`x` meets nothing"):
        Given(network="integers").apply(network(), loaded())


@pytest.mark.slow
def test_keyword_pair_is_judged_from_onnx_files_alone(checkout: Path, tmp_path: Path) -> None:
    """The int8 network is not worse than the fp32 one by a point; no torch network is there."""
    config = checkout / "configs" / "keywords" / "pipeline.yaml"
    if not (checkout.parent / "shared" / "data" / "models" / "kws_dscnn").is_dir():
        pytest.skip("../shared/data/models/kws_dscnn is not there")
    run = Run.open(specs.read(config), config, tmp_path)
    rows = baseline(run)
    assert [row.role for row in rows] == ["baseline"]
    (candidate,) = searching.first_rows(run, rows)
    timed = optimization.time(run, optimization.make(run, candidate), rows)
    *_, judged = validation.validate(run, [*rows, timed])
    assert judged.quality is not None
    assert judged.verdict is not None
    check = judged.verdict.checks[0]
    assert (check.clause, check.decision, check.samples) == ("quality.max_drop", "promote", 849)
    assert check.estimate == pytest.approx(-2 / 849)
    assert len(judged.quality.slices) == 12
