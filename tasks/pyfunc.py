"""A package as the MLflow model that any of MLflow's tools can load: code and plain files, no pickle."""

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, infer_signature

import pareflow
from pareflow.serving.model import ARRAYS, LISTED
from pareflow.stages.registration import golden


def save_pyfunc(package: Path, into: Path) -> None:
    """Write an MLflow model around a package: code, files, signature, pinned requirements; no pickle."""
    document = json.loads((package / "model.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        data, code = Path(folder) / "package", Path(folder) / "pareflow"
        shutil.copytree(package, data, ignore=shutil.ignore_patterns("manifest.json"))
        source = Path(str(pareflow.__file__)).parent
        shutil.copytree(source, code, ignore=shutil.ignore_patterns("__pycache__"))
        with warnings.catch_warnings():
            # An input example would be run here and now; the golden samples are, in a process of their own.
            warnings.filterwarnings("ignore", message=".*input example")
            # Samples lack no value: one that misses is refused before a network sees it.
            warnings.filterwarnings("ignore", message=".*integer column")
            warnings.filterwarnings("ignore", message=".*Any type hint")  # MLflow's own, when first imported
            mlflow.pyfunc.save_model(
                into,
                loader_module="pareflow.serving.model",
                data_path=str(data),
                code_paths=[str(code)],
                pip_requirements=[f"mlflow=={mlflow.__version__}", *document["requirements"]],
                signature=_signature(document["samples"], golden(package)),
            )


def _signature(kind: str, examples: dict[str, Any]) -> ModelSignature | None:
    """What MLflow says of both sides; nothing of one whose values differ in size."""
    inputs, outputs = _inputs(kind, examples["samples"]), _even(examples["predictions"])
    if inputs is None and outputs is None:
        return None
    return infer_signature(inputs, outputs)


def _inputs(kind: str, samples: list[Any]) -> Any:
    if kind == "text":
        return pd.DataFrame({"text": samples})
    if kind.startswith("["):  # records: a column per input
        return pd.DataFrame(samples)
    if kind.startswith((ARRAYS, LISTED)):
        return None
    return np.asarray(samples, dtype=kind)


def _even(predictions: list[Any]) -> np.ndarray | None:
    try:
        return np.asarray(predictions)
    except ValueError:  # they differ in length
        return None
