"""What each setting of a runtime changes, and that none changes the answers."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from pareflow.compiler import openvino
from pareflow.compiler.backend import Backend
from pareflow.compiler.graph_passes import NEEDED, PASSES, Pass, switched_off
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.compiler.openvino import OpenVino
from pareflow.measuring.graph_report import graph_report
from pareflow.measuring.network_facts import called
from pareflow.network import FILES, Form
from pareflow.workload import Arrays, LoadedWorkload
from tests.concurrency import answered_at_once

Forms = Callable[[str], Mapping[Form, Path]]
Load = Callable[[str], LoadedWorkload]

LOUD = """
import onnxruntime, sys
options = onnxruntime.SessionOptions()
options.log_severity_level = 0
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def answers(backend: Backend, source: Path, folder: Path, feeds: Arrays) -> Arrays:
    folder.mkdir()
    backend.compile(source, folder)
    return backend.load(folder).run(feeds)


@pytest.mark.parametrize("name", ["images", "texts"])
@pytest.mark.parametrize(
    "changed",
    [
        *(OnnxRuntime(without=(one,)) for one in PASSES),
        OnnxRuntime(without=tuple(PASSES)),
        OnnxRuntime(threads=2, inter_threads=2),
        OnnxRuntime(huge_pages=True),
        OpenVino(huge_pages=True),
        OpenVino(huge_pages=True, static_shapes=True),
        OpenVino(threads=2, streams=2),
        OpenVino(hint="throughput", threads=2, streams=2),
    ],
    ids=lambda backend: str(backend.label),
)
def test_settings_keep_the_answers(
    changed: Backend, name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    feeds = load_tiny(name).example(5)
    source = forms(name)[changed.form]
    plain = answers(type(changed)(), source, tmp_path / "plain", feeds)
    other = answers(changed, source, tmp_path / "other", feeds)
    assert plain.keys() == other.keys()
    for key in plain:
        np.testing.assert_allclose(plain[key], other[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", [OnnxRuntime(huge_pages=True), OpenVino(huge_pages=True)], ids=str)
def test_a_session_in_huge_pages_says_how_much_of_it_is(
    backend: Backend, forms: Forms, tmp_path: Path
) -> None:
    if reason := backend.unfit():
        pytest.skip(reason)
    backend.compile(forms("images")[backend.form], tmp_path)
    assert re.fullmatch(r"\d+ MiB put in huge pages", backend.load(tmp_path).ran().notes)


@pytest.mark.parametrize("name", ["images", "texts"])
def test_every_pass_that_the_runtime_runs_is_known(name: str, forms: Forms) -> None:
    path = forms(name)["onnx"] / FILES["onnx"]
    done = subprocess.run([sys.executable, "-c", LOUD, path], capture_output=True, text=True, check=True)
    ran = set(re.findall(r"GraphTransformer (\S+) modified", done.stderr))
    assert len(ran) > 20
    assert ran <= {*switched_off(tuple(PASSES)), *NEEDED}


def test_a_pass_that_is_switched_off_does_not_run(forms: Forms, load_tiny: Load) -> None:
    """Behind the tiny network's convolution is a ReLU: fused, or left; the layout pass would take it too."""
    folder = forms("images")["onnx"]
    feeds = load_tiny("images").example(1)
    whole = graph_report(folder, OnnxRuntime(graph_level="extended"), feeds)
    without = graph_report(folder, OnnxRuntime(graph_level="extended", without=("fusion",)), feeds)
    assert whole.before == without.before
    assert whole.gone["Relu"] == 1
    assert whole.fused["com.microsoft::FusedConv"] == 1
    assert not without.gone


def test_a_graph_report_counts_nodes_by_hand(tmp_path: Path) -> None:
    """Of Relu(Identity(x) + (1 + 2)), the sum of constants is folded and the Identity goes."""
    make = onnx.helper
    numbers = {
        name: make.make_tensor(name, onnx.TensorProto.FLOAT, [1], [n]) for name, n in (("a", 1), ("b", 2))
    }
    nodes = [
        make.make_node("Constant", [], ["a"], value=numbers["a"]),
        make.make_node("Constant", [], ["b"], value=numbers["b"]),
        make.make_node("Add", ["a", "b"], ["three"]),
        make.make_node("Identity", ["x"], ["same"]),
        make.make_node("Add", ["same", "three"], ["sum"]),
        make.make_node("Relu", ["sum"], ["y"]),
    ]
    ports = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = make.make_graph(nodes, "small", ports[:1], ports[1:])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, tmp_path / FILES["onnx"])
    report = graph_report(tmp_path, OnnxRuntime(), {"x": np.zeros((2, 4), np.float32)})
    assert report.before == {"Identity": 1, "Add": 2, "Relu": 1}
    assert report.after == {"Add": 1, "Relu": 1}
    assert report.gone == {"Identity": 1, "Add": 1}
    assert report.to_json()["nodes"] == {"before": 4, "after": 2}
    assert not report.fused
    before, after = (
        report.activations
    )  # x, same, sum and y of 2 × 4 numbers, all of which can lie in one place
    assert (before.separate_bytes, after.separate_bytes) == (4 * 32, 3 * 32)
    assert before.planned_bytes == after.planned_bytes == 32


def test_a_saved_graph_is_optimized_when_it_is_compiled(
    forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    source, feeds = forms("images")["onnx"], load_tiny("images").example(1)
    OnnxRuntime(saved=True).compile(source, tmp_path)
    kinds = {called(node) for node in onnx.load_model(tmp_path / FILES["onnx"]).graph.node}
    assert kinds == graph_report(source, OnnxRuntime(), feeds).after.keys()


@pytest.mark.parametrize(
    ("cls", "settings", "law"),
    [
        (OnnxRuntime, {"saved": True, "packed": True}, "one of `saved` and `packed` must be false"),
        (OpenVino, {"threads": 1, "streams": 2}, "`streams <= threads` must hold, but 2 > 1"),
        (OpenVino, {"threads": 2, "streams": 2, "static_shapes": True}, "`static_shapes` must go with one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    cls: type[Backend], settings: dict[str, object], law: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(law)):
        cls.from_settings(settings)


def test_static_shapes_compile_once_per_shape(forms: Forms, load_tiny: Load, tmp_path: Path) -> None:
    backend = OpenVino(static_shapes=True)
    backend.compile(forms("texts")["openvino"], tmp_path)
    session = backend.load(tmp_path)
    for samples in (1, 3, 1):
        session.run(load_tiny("texts").example(samples))
    assert len(session._sessions) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "backend",
    [OpenVino(), OpenVino(static_shapes=True), OpenVino(threads=2, streams=2), OnnxRuntime()],
    ids=lambda backend: str(backend.label),
)
def test_threads_that_ask_at_once_get_their_own_answers(
    backend: Backend, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    """As MLflow's server asks a packaged model."""
    backend.compile(forms("images")[backend.form], tmp_path)
    session, feeds = backend.load(tmp_path), load_tiny("images").example(8)
    alone = [{name: array[row : row + 4] for name, array in feeds.items()} for row in range(4)]
    expected = [session.run(one)["output"] for one in alone]
    answered_at_once(session.run, alone, expected)


class Part:
    """An inference request, which fails or not, and notes what became of it."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.started, self.waited = error, False, False

    def start_async(self, part: Arrays, share_inputs: bool) -> None:
        self.started = True

    def wait(self) -> None:
        self.waited = True
        if self.error is not None:
            raise self.error


def test_a_part_that_fails_leaves_no_other_running(forms: Forms, load_tiny: Load, tmp_path: Path) -> None:
    """The next client would meet a busy request. What is raised is the first part's."""
    backend = OpenVino(threads=4, streams=4)
    backend.compile(forms("images")["openvino"], tmp_path)
    session = backend.load(tmp_path)
    assert isinstance(session, openvino.OpenVinoSession)
    parts = [Part(RuntimeError("the first")), Part(None), Part(RuntimeError("the third")), Part(None)]
    session._requests = parts
    with pytest.raises(RuntimeError, match="the first"):
        session.run(load_tiny("images").example(4))
    assert [(part.started, part.waited) for part in parts] == [(True, True)] * 4


def test_static_shapes_keep_the_last_ones(
    forms: Forms, load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "MOST", 2)
    backend = OpenVino(static_shapes=True)
    backend.compile(forms("images")["openvino"], tmp_path)
    session, feeds = backend.load(tmp_path), load_tiny("images").example(3)
    expected = session.run(feeds)["output"]
    for samples in (1, 3, 2, 3):
        answer = session.run({name: array[:samples] for name, array in feeds.items()})["output"]
        np.testing.assert_allclose(answer, expected[:samples], rtol=1e-5, atol=1e-6)
    assert isinstance(session, openvino.StaticSession)
    assert [shape[0] for ((_, shape),) in session._sessions] == [2, 3]


def test_switched_off_names_each_pass_once() -> None:
    every: tuple[Pass, ...] = tuple(PASSES)
    assert len(switched_off(every)) == len(set(switched_off(every))) == sum(map(len, PASSES.values()))
    assert not set(switched_off(every)) & set(NEEDED)
