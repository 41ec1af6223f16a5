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
from mlflow.models import infer_signature

import pareflow
from pareflow.stages.registration import golden


def save_pyfunc(package: Path, into: Path) -> None:
    """Write an MLflow model around a package: code, files, signature, pinned requirements; no pickle."""
    document, examples = json.loads((package / "model.json").read_text()), golden(package)
    samples = examples["samples"]
    if document["samples"] == "text":
        inputs: Any = pd.DataFrame({"text": samples})
    else:
        inputs = np.asarray(samples, dtype=document["samples"])
    with tempfile.TemporaryDirectory() as folder:
        data, code = Path(folder) / "package", Path(folder) / "pareflow"
        shutil.copytree(package, data, ignore=shutil.ignore_patterns("manifest.json"))
        source = Path(str(pareflow.__file__)).parent
        shutil.copytree(source, code, ignore=shutil.ignore_patterns("__pycache__"))
        with warnings.catch_warnings():
            # An input example would be run here and now; the golden samples are, in a process of their own.
            warnings.filterwarnings("ignore", message=".*input example")
            warnings.filterwarnings("ignore", message=".*Any type hint")  # MLflow's own, when first imported
            mlflow.pyfunc.save_model(
                into,
                loader_module="pareflow.serving.model",
                data_path=str(data),
                code_paths=[str(code)],
                pip_requirements=[f"mlflow=={mlflow.__version__}", *document["requirements"]],
                signature=infer_signature(inputs, np.asarray(examples["predictions"])),
            )
