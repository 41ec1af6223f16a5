"""LiteRT's side: litert-torch converts, ai-edge-quantizer quantizes, the interpreter runs."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from . import program

MODEL = "model.tflite"
MISSING = r"Lowering not found: (\S+)\s+While executing %(\w+)"
"""How it says that an operator cannot be converted, and where."""


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("ai-edge-litert", "litert-torch", "ai-edge-quantizer", "torch")}


def compile(source: str, into: str, precision: str, batch_size: int, threads: int) -> None:  # noqa: A001
    """Write the flatbuffer, and the names of its inputs and outputs."""
    import litert_torch

    exported = program.read(Path(source))
    feeds = program.example(exported, batch_size)
    with program.naming(MISSING):
        made = litert_torch.convert(program.positional(exported), tuple(feeds.values()))
    path = Path(into) / MODEL
    made.export(str(path))
    if precision != "float32":
        _quantize(path, precision, program.calibration(Path(source), batch_size))
    names = {"inputs": list(feeds), "outputs": program.outputs(exported)}
    (Path(into) / "names.json").write_text(json.dumps(names))


def _quantize(path: Path, precision: str, samples: list[dict[str, np.ndarray]]) -> None:
    from ai_edge_quantizer import quantizer, recipe

    made = {"dynamic_int8": recipe.dynamic_wi8_afp32, "static_int8": recipe.static_wi8_ai8}[precision]()
    working = quantizer.Quantizer(str(path), made)
    quantized = working.quantize(_ranges(path, made, samples) if working.need_calibration else None)
    path.unlink()
    quantized.export_model(str(path))


def _ranges(path: Path, made: Any, samples: list[dict[str, np.ndarray]]) -> Any:
    """The extremes of each tensor over all samples.

    `Quantizer.calibrate` would take a moving average of them, and clip what lies beyond: an error of 27 % of
    the largest output on a small network, where this has less than 1 %.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(made)
    given = [{f"args_{i}": _as_32_bit(array) for i, array in enumerate(feeds.values())} for feeds in samples]
    working = calibrator.Calibrator(path.read_bytes(), qsv_update_func=qsv_utils.min_max_update)
    working.calibrate({"serving_default": given}, manager)
    return working.get_model_qsvs()


def _as_32_bit(array: np.ndarray) -> np.ndarray:
    narrow = {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}
    return array.astype(narrow.get(array.dtype, array.dtype))


def load(artifact: str, precision: str, batch_size: int, threads: int) -> "Flatbuffer":
    return Flatbuffer(Path(artifact), threads)


class Flatbuffer:
    """An interpreter with its tensors allocated."""

    def __init__(self, artifact: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        names = json.loads((artifact / "names.json").read_text())
        self._threads = threads
        self._interpreter = Interpreter(str(artifact / MODEL), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._inputs = dict(
            zip(names["inputs"], _by_position(self._interpreter.get_input_details()), strict=True)
        )
        runner = self._interpreter.get_signature_runner()
        self._outputs = dict(zip(names["outputs"], _named(runner.get_output_details()), strict=True))

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch_size = int(next(iter(self._inputs.values()))["shape"][0])
        return program.piecewise(self._piece, feeds, batch_size)

    def _piece(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, tensor in self._inputs.items():
            program.check_shape(name, feeds[name], tensor["shape"])
            self._interpreter.set_tensor(tensor["index"], _encoded(feeds[name], tensor))
        self._interpreter.invoke()
        return {
            name: _decoded(self._interpreter.get_tensor(t["index"]), t) for name, t in self._outputs.items()
        }

    def ran(self) -> dict[str, Any]:
        operators = [step["op_name"] for step in self._interpreter._get_ops_details()]
        details = self._interpreter.get_tensor_details()
        kinds = {str(np.dtype(t["dtype"])) for t in details if t["quantization_parameters"]["scales"].size}
        return {
            "runtime": "litert",
            "version": version("ai-edge-litert"),
            "precision": "int8" if "int8" in kinds else "float32",
            "device": "CPU",
            "threads": self._threads,
            "notes": ", ".join(sorted(set(operators))),
        }


def _encoded(array: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """An input as its tensor holds it: one of bytes that stand for numbers is of the nearest of these."""
    scale, zero_point = tensor["quantization"]
    if not scale or array.dtype.kind != "f":
        return array.astype(tensor["dtype"], copy=False)
    limits = np.iinfo(tensor["dtype"])
    steps = np.rint(array / scale) + zero_point
    held: np.ndarray = np.clip(steps, limits.min, limits.max).astype(tensor["dtype"])
    return held


def _decoded(array: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    scale, zero_point = tensor["quantization"]
    if not scale:
        return array
    numbers: np.ndarray = (array.astype(np.float32) - zero_point) * np.float32(scale)
    return numbers


def _by_position(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs in the order of the network's own, which `args_0`, `args_1`, … in their names tell."""
    return sorted(details, key=lambda tensor: int(tensor["name"].rpartition("_")[2].partition(":")[0]))


def _named(details: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [details[name] for name in sorted(details, key=lambda name: int(name.rpartition("_")[2]))]
