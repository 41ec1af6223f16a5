"""Core ML's side: coremltools converts an exported program and checks the package; macOS runs it."""

import json
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from . import program
from .serve import UnsupportedError

PACKAGE = "model.mlpackage"
FACTS = "facts.json"
SMALL = 512
"""Weights of at most so many values stay as they are: what they take is nothing, and some are sensitive."""
_WIDEST = {"float32": "FLOAT32", "float16": "FLOAT16", "int8_weights": "INT8"}


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("coremltools", "torch")}


def compile(source: str, into: str, precision: str, batch_size: int, threads: int) -> None:  # noqa: A001
    """Write the package, checked."""
    import coremltools
    from coremltools.optimize import coreml as optimize

    exported = program.read(Path(source))
    feeds = program.example(exported, batch_size)
    inputs, outputs = list(feeds), program.outputs(exported)
    half = precision != "float32"
    made = _converted(program.fixed(exported, batch_size).run_decompositions({}), half=half)
    if precision == "int8_weights":
        operation = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALL)
        made = optimize.linear_quantize_weights(made, optimize.OptimizationConfig(global_config=operation))
    specification = made.get_spec()
    described = specification.description
    for features, names in ((described.input, inputs), (described.output, outputs)):
        for feature, name in zip(list(features), names, strict=True):
            coremltools.utils.rename_feature(specification, feature.name, name)
    named = coremltools.models.MLModel(specification, weights_dir=made.weights_dir, skip_model_load=True)
    path = Path(into) / PACKAGE
    named.save(str(path))
    facts = check(path, inputs, outputs, precision)
    facts["dtypes"] = {name: str(tensor.numpy().dtype) for name, tensor in feeds.items()}
    (Path(into) / FACTS).write_text(json.dumps(facts))


def _converted(made: Any, *, half: bool) -> Any:
    """The program as an mlprogram. Raises: UnsupportedError."""
    import coremltools

    precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
    try:
        return coremltools.convert(
            made,
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS17,
            skip_model_load=True,
        )
    except NotImplementedError as error:
        missing = re.search(r"(?:function|op) '(\w+)' not implemented", str(error))
        if missing is None:
            raise
        raise UnsupportedError(missing[1], None, str(error)) from error


def check(path: Path, inputs: list[str], outputs: list[str], precision: str) -> dict[str, Any]:
    """What the package holds: it is read back, named as the network, and its weights are as was asked.

    Raises: ValueError.
    """
    import coremltools

    read = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    described = read.description
    found = [[feature.name for feature in features] for features in (described.input, described.output)]
    if found != [inputs, outputs]:
        raise ValueError(f"the package must have inputs and outputs {[inputs, outputs]}, but has {found}")
    kinds = {kind for kind, count in weights(read) if count > SMALL}
    if not kinds <= {_WIDEST[precision]}:
        raise ValueError(f"weights must be {_WIDEST[precision]}, but some are {', '.join(sorted(kinds))}")
    shapes = {feature.name: list(feature.type.multiArrayType.shape) for feature in described.input}
    return {"inputs": shapes, "outputs": outputs}


def weights(specification: Any) -> list[tuple[str, int]]:
    """The type and the number of values of each array that lies in the package's weight file."""
    from coremltools.proto import MIL_pb2

    found = []
    for function in specification.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                given = [argument for binding in operation.inputs.values() for argument in binding.arguments]
                values = [*operation.attributes.values(), *(argument.value for argument in given)]
                for value in values:
                    if value.HasField("blobFileValue"):
                        tensor = value.type.tensorType
                        count = math.prod(dim.constant.size for dim in tensor.dimensions)
                        found.append((MIL_pb2.DataType.Name(tensor.dataType), count))
    return found


def load(artifact: str, precision: str, batch_size: int, threads: int) -> "Package":
    return Package(Path(artifact), precision)


class Package:
    """The package compiled by macOS. Not measured: no macOS was at hand."""

    def __init__(self, artifact: Path, precision: str) -> None:
        import coremltools

        self._facts = json.loads((artifact / FACTS).read_text())
        self._half = precision != "float32"
        self._model = coremltools.models.MLModel(
            str(artifact / PACKAGE), compute_units=coremltools.ComputeUnit.CPU_ONLY
        )

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shape = next(iter(self._facts["inputs"].values()))
        return program.piecewise(self._piece, feeds, shape[0])

    def _piece(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, shape in self._facts["inputs"].items():
            program.check_shape(name, feeds[name], shape)
        found = self._model.predict({name: feeds[name].astype(np.float32) for name in self._facts["inputs"]})
        return {name: np.asarray(found[name], np.float32) for name in self._facts["outputs"]}

    def ran(self) -> dict[str, Any]:
        return {
            "runtime": "coreml",
            "version": version("coremltools"),
            "precision": "float16" if self._half else "float32",
            "device": "CPU",
            "threads": 1,
            "notes": "Core ML does not tell its threads",
        }
