"""A served model in this process, its client, a source of versions that tests move; a run under a load."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from starlette.testclient import TestClient

from pareflow.errors import PareflowError
from pareflow.serving.app import App
from pareflow.serving.executable import Release
from pareflow.serving.metrics import Metrics
from pareflow.serving.plan import ServingPlan
from pareflow.serving.settings import Settings
from pareflow.serving.slot import Challenge, FolderSource, Slot
from pareflow.sla import LoadClause
from pareflow.stages.run import Run
from pareflow.variant import Step

Packaged = Callable[..., Path]
INFER = "/v2/models/images/infer"


@dataclass
class Shelf:
    """A source that a test moves: what it gives, or what it raises."""

    release: Release | PareflowError
    kept: Release | None = None
    before: Release | None = None
    tried: Challenge | None = None
    name: str = field(default="images")

    def current(self) -> Release:
        if isinstance(self.release, PareflowError):
            raise self.release
        return self.release

    def last(self) -> Release | None:
        return self.kept

    def previous(self) -> Release | None:
        return self.before

    def challenger(self) -> Challenge | None:
        return self.tried


@dataclass
class Served:
    """A served model, and a client of it."""

    client: TestClient
    slot: Slot
    golden: Mapping[str, Any]

    def infer(self, path: str = INFER, **more: Any) -> Any:
        return self.client.post(path, content=json.dumps({"inputs": [self.input()], **more}))

    def input(self, count: int = 2) -> dict[str, Any]:
        samples = np.asarray(self.golden["samples"][:count], dtype=np.float32)
        return {
            "name": "images",
            "datatype": "FP32",
            "shape": [count, 1, *samples.shape[1:]],
            "data": samples.ravel().tolist(),
        }

    def refresh(self) -> None:
        """Look at the source, and wait until all is as it says."""
        assert self.client.portal is not None
        self.client.portal.call(self.slot.refresh)
        self.client.portal.call(self.slot.settled)

    def observed(self) -> dict[str, Any]:
        document: dict[str, Any] = self.client.get("/v2/models/images/trial").json()
        return document


Serve = Callable[..., Served]


@pytest.fixture
def serve(packaged: Packaged) -> Iterator[Serve]:
    """Serve one model to a client in this process, to the end of the test."""
    open_clients: list[TestClient] = []

    def begun(source: Any = None, plan: Mapping[str, Any] | None = None, **settings: Any) -> Served:
        package = packaged("images")
        metrics = Metrics()
        slot = Slot(source or FolderSource(package), ServingPlan(**(plan or {})), metrics)
        app = App([slot], Settings(poll_s=None, **settings), metrics)
        client = TestClient(app.asgi(), raise_server_exceptions=False)
        client.__enter__()
        open_clients.append(client)
        return Served(client, slot, json.loads((package / "golden.json").read_text()))

    yield begun
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture
def two(packaged: Packaged, tmp_path: Path) -> tuple[Release, Release]:
    """Two versions of one model: the same package, by two numbers."""
    first = Release("images", "1", packaged("images"))
    return first, replace(first, version="2")


@pytest.fixture
def mixing(packaged: Packaged, tmp_path: Path) -> Path:
    """A package that says that its answers depend on those beside them, and were judged two at a time."""
    folder = shutil.copytree(packaged("images"), tmp_path / "mixing")
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**document, "judged_batch_size": 2}))
    return folder


@pytest.fixture
def under(trained: Any) -> Callable[..., Run]:
    """The run with this load in its SLA; ids of variants stay."""

    def changed(**load: float) -> Run:
        sla = trained.run.spec.sla.model_copy(update={"load": LoadClause(**load)})
        run: Run = replace(trained.run, spec=trained.run.spec.model_copy(update={"sla": sla}))
        return run

    return changed


@pytest.fixture
def detector(own_workloads: Path, make_package: Callable[..., Path], tmp_path: Path) -> Path:
    """The package of images whose predictions are none, one or two boxes, four numbers each."""
    file = own_workloads / "images.py"
    boxes = '[np.tile(scores, (int(scores.argmax()) % 3, 1)) for scores in outputs["output"]]'
    file.write_text(file.read_text().replace('outputs["output"].argmax(axis=1)', boxes))
    reference = {"file": {"path": file.name}}
    return make_package(reference, own_workloads, tmp_path / "store", Step("onnxruntime"), "images")


@pytest.fixture
def with_gaps(make_package: Callable[..., Path], own_workloads: Path, tmp_path: Path) -> Callable[..., Path]:
    """The package of a network that reads NaN as 0, of four numbers each; its data hold some, or none."""

    def made(gaps: bool = True) -> Path:
        nodes = [
            helper.make_node("IsNaN", ["x"], ["absent"]),
            helper.make_node("Where", ["absent", "zero", "x"], ["filled"]),
            helper.make_node("MatMul", ["filled", "weights"], ["y"]),
        ]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])]
        arrays = {"zero": np.zeros((), np.float32), "weights": np.eye(4, dtype=np.float32)}
        weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        graph = helper.make_graph(nodes, "gaps", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save_model(model, own_workloads / "gaps.onnx")
        random = np.random.default_rng(0)
        rows = random.standard_normal((400, 4), np.float32)
        if gaps:
            rows[random.random(rows.shape) < 0.2] = np.nan
        np.savez(own_workloads / f"gaps-{gaps}.npz", samples=rows, targets=np.arange(400) % 4)
        reference = {"onnx": {"model": "gaps.onnx", "arrays": f"gaps-{gaps}.npz"}}
        store = tmp_path / f"store-{gaps}"
        return make_package(reference, own_workloads, store, Step("onnxruntime"), "images")

    return made


LINEAR_WEIGHTS = np.random.default_rng(0).standard_normal((64, 4), np.float32)
Linear = Callable[..., Path]


@pytest.fixture
def linear(make_package: Callable[..., Path], own_workloads: Path, tmp_path: Path) -> Linear:
    """The package of a linear network of somebody's own, by what it calls its images and its four scores.

    `again` is one more output, the same scores. More are settings of its workload. Images of another size
    than 8×8 fail in the network.
    """

    def made(image: str = "x", scores: str = "y", again: str | None = None, **settings: Any) -> Path:
        kind = TensorProto.FLOAT
        nodes = [
            helper.make_node("Flatten", [image], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], [scores]),
        ]
        inputs = [helper.make_tensor_value_info(image, kind, ["batch", 1, "height", "width"])]
        outputs = [helper.make_tensor_value_info(scores, kind, ["batch", 4])]
        if again is not None:
            nodes.append(helper.make_node("Identity", [scores], [again]))
            outputs.append(helper.make_tensor_value_info(again, kind, ["batch", 4]))
        weights = [numpy_helper.from_array(LINEAR_WEIGHTS, "weights")]
        graph = helper.make_graph(nodes, "linear", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save_model(model, own_workloads / "linear.onnx")
        images = np.random.default_rng(2).standard_normal((400, 1, 8, 8), np.float32)
        np.savez(own_workloads / "linear.npz", samples=images, targets=np.arange(400) % 4)
        reference = {"onnx": {"model": "linear.onnx", "arrays": "linear.npz", **settings}}
        return make_package(reference, own_workloads, tmp_path / "store", Step("onnxruntime"), "linear")

    return made
