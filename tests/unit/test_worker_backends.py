"""Backends in workers, as far as they can be asked without their environments; what needs those is slow."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pareflow import network
from pareflow.catalog import BACKENDS
from pareflow.compiler import Backend, CoreMl, ExecuTorch, LiteRt, Tvm
from pareflow.compiler.worker import WorkerBackend
from pareflow.errors import EnvironmentUnfitError, UnsuitableError
from pareflow.hardware import probe
from pareflow.network import Form
from pareflow.store import Store
from pareflow.workload import LoadedWorkload, load

WORKERS = sorted(name for name, cls in BACKENDS.items() if issubclass(cls, WorkerBackend))
Forms = Callable[[str], Mapping[Form, Path]]


def test_there_are_four() -> None:
    assert set(WORKERS) >= {"coreml", "executorch", "litert", "tvm"}


@pytest.mark.parametrize("name", ["executorch", "litert", "tvm"])
def test_environment_that_is_not_made_yet_is_no_reason(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAREFLOW_ENVIRONMENTS", str(tmp_path))
    assert BACKENDS[name].unavailable() is None
    assert list(tmp_path.iterdir()) == []  # nor does asking make one


def test_tvm_needs_a_linker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "C++ compiler" in str(Tvm.unavailable())


@pytest.mark.skipif(sys.platform == "darwin", reason="this is macOS, where Core ML predicts")
def test_core_ml_says_that_it_predicts_only_on_macos(tmp_path: Path) -> None:
    assert "predicts only on macOS" in str(CoreMl.unavailable())
    with pytest.raises(EnvironmentUnfitError, match=r"must be asked for on macOS.*Take .* to a Mac"):
        CoreMl().load(tmp_path)


@pytest.mark.parametrize("name", WORKERS)
def test_code_version_is_of_the_workers_files_and_of_the_lock(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pareflow.compiler import worker

    before = BACKENDS[name].code_version()
    monkeypatch.setattr(worker, "_SHARED", ("serve", "wire"))
    assert BACKENDS[name].code_version() != before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "int8_weights"])
@pytest.mark.parametrize("name", ["images", "texts"])
def test_core_ml_package_is_named_and_weighed(
    name: str, precision: Any, forms: Forms, tmp_path: Path
) -> None:
    """Compiled here, to be run elsewhere; the worker reads the package back and refuses a wrong one."""
    CoreMl(precision=precision).compile(forms(name)["exported"], tmp_path)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert list(facts["inputs"]) == {"images": ["images"], "texts": ["ids", "mask"]}[name]
    assert facts["outputs"] == ["output"]
    weights = sum(path.stat().st_size for path in tmp_path.rglob("weight.bin"))
    if name == "images":  # 2048 weights of the head, and the convolution's 72
        widest = {"float32": 4, "float16": 2, "int8_weights": 1}[precision]
        assert 2048 * widest <= weights < 2048 * widest + 1500


def test_code_version_is_of_the_files_that_only_one_worker_has(monkeypatch: pytest.MonkeyPatch) -> None:
    tvm, litert = Tvm.code_version(), BACKENDS["litert"].code_version()
    monkeypatch.setattr(Tvm, "parts", ())
    assert Tvm.code_version() != tvm
    assert BACKENDS["litert"].code_version() == litert


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "texts"])
def test_tuned_tvm_gives_the_numbers_of_onnxruntime(
    name: str, forms: Forms, load_tiny: Callable[[str], LoadedWorkload], tmp_path: Path
) -> None:
    import onnxruntime

    source, feeds = forms(name)["onnx"], dict(load_tiny(name).example(3))
    length = feeds["ids"].shape[1] if name == "texts" else None
    Tvm(tuning_s=10, length=length).compile(source, tmp_path)
    loaded = Tvm(tuning_s=10, length=length).load(tmp_path)
    (answer,) = loaded.run(feeds).values()
    session = onnxruntime.InferenceSession(source / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    assert np.abs(answer - expected).max() <= 1e-4 * np.abs(expected).max()
    said = re.search(r"tuned for 10 s: (\d+) of (\d+) kernels have a schedule", loaded.ran().notes)
    assert said is not None
    assert 1 <= int(said[1]) <= int(said[2])


@pytest.mark.slow
@pytest.mark.skipif(len(probe.cores()) < 2, reason="there is one core")
def test_tvm_stays_on_the_cores_that_it_is_given(
    forms: Forms, load_tiny: Callable[[str], LoadedWorkload], tmp_path: Path
) -> None:
    """Contestants of the arena have cores of their own."""
    Tvm().compile(forms("images")["onnx"], tmp_path)
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(ours)})
    try:
        session = Tvm().load(tmp_path)
    finally:
        os.sched_setaffinity(0, ours)
    session.run(load_tiny("images").example(1))
    session.ran()
    assert os.sched_getaffinity(session._worker.pid) == {max(ours)}


@pytest.mark.slow
def test_compiling_the_same_variant_twice_costs_one_look_up(forms: Forms, tmp_path: Path) -> None:
    """The store is asked, and no worker started (law 6)."""
    made: list[Path] = []
    backend, store = Tvm(), Store(tmp_path / "store")

    def compile_into(into: Path) -> None:
        made.append(into)
        backend.compile(forms("images")["onnx"], into)

    folders = {store.ensure(backend.code_version(), compile_into) for _ in range(2)}
    assert (len(made), len(folders)) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [ExecuTorch, LiteRt])
def test_an_operator_that_a_runtime_of_exported_programs_lacks_is_named(
    cls: type[Backend], tmp_path: Path
) -> None:
    import torch

    class Bessel(torch.nn.Module):
        def forward(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"output": torch.special.bessel_j0(feeds["x"])}

    batch = torch.export.Dim.DYNAMIC(min=1, max=64)
    program = torch.export.export(Bessel(), ({"x": torch.rand(2, 4)},), dynamic_shapes=({"x": {0: batch}},))
    network.save(program, "exported", tmp_path)
    (tmp_path / "artifact").mkdir()
    with pytest.raises(UnsuitableError, match=r"it lacks `aten\.special_bessel_j0\.default`"):
        cls().compile(tmp_path, tmp_path / "artifact")


@pytest.mark.slow
def test_an_operator_that_tvm_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("Det", ["x"], ["y"], name="the_one")],
        "determinant",
        [make.make_tensor_value_info("x", kind, ["batch", 4, 4])],
        [make.make_tensor_value_info("y", kind, ["batch"])],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 22)], ir_version=10)
    onnx.save_model(model, tmp_path / "model.onnx")
    (tmp_path / "artifact").mkdir()
    with pytest.raises(UnsuitableError, match=r"it lacks `Det` \(node `the_one`\)"):
        Tvm().compile(tmp_path, tmp_path / "artifact")


@pytest.mark.slow
@pytest.mark.parametrize(("file", "accuracy"), [("fp32", 0.901), ("int8_qdq", 0.902)])
def test_keyword_network_gives_on_tvm_what_it_gives_on_onnxruntime(
    file: str, accuracy: float, checkout: Path, tmp_path: Path
) -> None:
    """All 1000 samples; the int8 file takes bytes, the other what they stand for."""
    import onnxruntime

    folder = checkout.parent / "shared" / "data" / "models" / "kws_dscnn"
    if not folder.is_dir():
        pytest.skip("../shared/data/models/kws_dscnn is not there")
    for part in ("source", "artifact"):
        (tmp_path / part).mkdir()
    graph = tmp_path / "source" / "model.onnx"
    graph.write_bytes((folder / f"kws_dscnn_{file}.onnx").read_bytes())
    with np.load(folder / "kws01_eval.npz") as stored:
        samples, labels = stored["features_int8"].reshape(-1, 49, 10, 1), stored["labels"]
        real = ((samples.astype(np.float32) - stored["input_zero_point"]) * stored["input_scale"]).astype(
            np.float32
        )
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    given = samples if file == "int8_qdq" else real
    feeds = {session.get_inputs()[0].name: given}
    expected = session.run(None, feeds)[0]
    backend = Tvm()
    backend.compile(tmp_path / "source", tmp_path / "artifact")
    loaded = backend.load(tmp_path / "artifact")
    assert loaded.ran().notes.endswith(", untuned")
    (answers,) = loaded.run(feeds).values()
    assert answers.dtype == expected.dtype
    assert (answers.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert (answers.argmax(1) == labels).mean() == pytest.approx(accuracy, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "file", "precision"),
    [
        (LiteRt(), "fp32", "float32"),
        (LiteRt(precision="static_int8"), "fp32", "int8"),
        (LiteRt(), "int8_qdq", "float32"),
        (ExecuTorch(precision="static_int8"), "fp32", "int8"),
    ],
    ids=["litert", "litert-int8", "litert-of-int8", "executorch-int8"],
)
def test_keyword_network_goes_from_onnx_to_devices(
    backend: WorkerBackend, file: str, precision: str, checkout: Path, tmp_path: Path
) -> None:
    """The microcontroller's goal: 0.90 of all 1000 samples, in bytes. Q/DQ pairs are computed as written."""
    folder = checkout.parent / "shared" / "data" / "models" / "kws_dscnn"
    if not folder.is_dir():
        pytest.skip("../shared/data/models/kws_dscnn is not there")
    scaled = {"scale": 0.5847029, "zero_point": 83} if file == "fp32" else {}
    reference: dict[str, Any] = {
        "model": str(folder / f"kws_dscnn_{file}.onnx"),
        "arrays": str(folder / "kws01_eval.npz"),
        "samples": "features_int8",
        "targets": "labels",
        "calibration": 50,
        "search": 100,  # its samples repeat: these splits share none
        **scaled,
    }
    workload = load({"onnx": reference}, tmp_path)
    for part in ("onnx", "exported", "artifact"):
        (tmp_path / part).mkdir()
    network.save(workload.definition.network(), "onnx", tmp_path / "onnx")
    network.convert(tmp_path / "onnx", "exported", workload, tmp_path / "exported")
    backend.compile(tmp_path / "exported", tmp_path / "artifact")
    loaded = backend.load(tmp_path / "artifact")
    with np.load(folder / "kws01_eval.npz") as stored:
        feeds, labels = workload.definition.preprocess(stored["features_int8"]), stored["labels"]
    assert loaded.ran().precision == precision
    found = workload.definition.postprocess(loaded.run(feeds))
    assert (found == labels).mean() >= 0.90
