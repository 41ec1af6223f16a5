"""A package as MLflow's model: whatever it takes and predicts, it loads, and predicts the same."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from pareflow.serving.model import PackagedModel
from pareflow.variant import Step
from tasks.pyfunc import save_pyfunc

Make = Callable[[Mapping[str, Any]], Path]
Load = Callable[[Path], Any]
TOKENS = """
import numpy as np
from .ragged import Ragged

class Tokens(Ragged):
    def postprocess(self, outputs):
        found = np.empty(len(outputs["output"]), dtype=object)
        found[:] = [[int(one)] * (1 + position % 3) for position, one in enumerate(outputs["output"][:, 0])]
        return found
"""
"""As a classifier of tokens predicts whose postprocessing strips the padding."""


@pytest.fixture
def make(make_package: Callable[..., Path], own_workloads: Path, tmp_path: Path) -> Make:
    """The package of a workload of one's own, on ONNX Runtime."""

    def made(reference: Mapping[str, Any]) -> Path:
        return make_package(reference, own_workloads, tmp_path / "store", Step("onnxruntime"), "own")

    return made


@pytest.fixture
def as_mlflow_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """The model of a package, saved and loaded again; MLflow puts its code on the path, which ends here."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def loaded(package: Path) -> Any:
        save_pyfunc(package, tmp_path / "model")
        return mlflow.pyfunc.load_model(str(tmp_path / "model"))

    return loaded


def test_records_are_a_table_for_mlflow(make: Make, own_workloads: Path, as_mlflow_loads: Load) -> None:
    """A column per input, of a value or of a row of them."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "mask"], ["y"]),
    ]
    kinds = {"ids": TensorProto.INT64, "mask": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])]
    model = helper.make_model(
        helper.make_graph(nodes, "masked", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save_model(model, own_workloads / "masked.onnx")
    mask = np.random.default_rng(0).uniform(0, 9, (400, 3)).astype(np.float32)
    ids = np.arange(1200).reshape(400, 3)
    np.savez(own_workloads / "masked.npz", a=ids, b=mask, targets=np.arange(400) % 3)
    given = {"model": "masked.onnx", "arrays": "masked.npz", "samples": {"ids": "a", "mask": "b"}}
    package = make({"onnx": given})
    loaded = as_mlflow_loads(package)
    table = pd.DataFrame({"ids": [[1, 2, 3], [3, 2, 1]], "mask": [[1.0, 0.5, 0.2], [0.1, 0.5, 0.2]]})
    assert list(loaded.predict(table)) == [0, 1] == list(PackagedModel(package).predict(table))
    assert loaded.metadata.signature.inputs.input_names() == ["ids", "mask"]


@pytest.mark.parametrize("in_list", [False, True])
def test_samples_of_different_sizes_have_no_signature(
    make: Make, as_mlflow_loads: Load, in_list: bool
) -> None:
    package = make({"file": {"path": "ragged.py", "settings": {"in_list": in_list}}})
    loaded = as_mlflow_loads(package)
    assert list(loaded.predict([[1, -2.5], [0.5], [-3, 1, 4]])) == [0, 1, 1]
    assert loaded.metadata.signature.inputs is None
    assert loaded.metadata.signature.outputs is not None


def test_neither_have_predictions_that_do(make: Make, own_workloads: Path, as_mlflow_loads: Load) -> None:
    (own_workloads / "tokens.py").write_text(TOKENS)
    loaded = as_mlflow_loads(make({"file": {"path": "tokens.py"}}))
    assert list(loaded.predict([[1, -2.5], [0.5], [-3, 1, 4]])) == [[0], [1, 1], [1, 1, 1]]
    assert loaded.metadata.signature is None
