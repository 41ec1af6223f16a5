"""TVM's side: Relax imports and fuses the graph, kernels are tuned where asked, LLVM compiles it."""

import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from . import folding, program, schedules
from .serve import UnsupportedError

LIBRARY = "model.so"
FACTS = "facts.json"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("apache-tvm", "onnx")}


def compile(  # noqa: A001
    source: str, into: str, batch_size: int, length: int | None, tuning_s: float, threads: int
) -> None:
    """Write the library, and what its loader must know: names, types, and how it was made."""
    import onnx
    import tvm

    model = onnx.load(str(Path(source) / "model.onnx"))
    inputs = _inputs(model, batch_size, length)
    _fix(model, inputs)
    _use(threads)
    module, target = _imported(folding.fold(model), inputs), _target(threads)
    module, tuned = _tuned(module, target, tuning_s) if tuning_s else (_fused(module), None)
    facts = {
        "inputs": {name: [dtype, [_size(d) for d in shape]] for name, (dtype, shape) in inputs.items()},
        "outputs": [output.name for output in model.graph.output],
        "int8": _computes_in_bytes(model),
        "tuned": tuned,
        "target": f"{target.kind.name} {target.attrs['mcpu']}",
    }
    tvm.compile(module, target).export_library(str(Path(into) / LIBRARY))
    (Path(into) / FACTS).write_text(json.dumps(facts))


def _use(threads: int) -> None:
    """So many threads for TVM, on any core that this process may use: it would bind them to the first ones.

    It reads this once, when the first kernel asks for its pool.
    """
    os.environ.update(TVM_NUM_THREADS=str(threads), TVM_BIND_THREADS="0")


def _inputs(model: Any, batch_size: int, length: int | None) -> dict[str, tuple[str, list[Any]]]:
    """The type and the shape of each input; open axes by name, as the importer takes them."""
    from onnx import helper

    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for tensor in model.graph.input:
        if tensor.name not in weights:
            kind = tensor.type.tensor_type
            dims = [d.dim_value or d.dim_param or f"{tensor.name}_{i}" for i, d in enumerate(kind.shape.dim)]
            shape = [
                size if isinstance(size, int) else batch_size if i == 0 else length or _symbol(size)
                for i, size in enumerate(dims)
            ]
            found[tensor.name] = (str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)
    return found


def _fix(model: Any, inputs: dict[str, tuple[str, list[Any]]]) -> None:
    """Write the sizes that were chosen into the graph, and forget what it says of its other tensors."""
    for tensor in model.graph.input:
        if tensor.name in inputs:
            for dim, size in zip(tensor.type.tensor_type.shape.dim, inputs[tensor.name][1], strict=True):
                setattr(dim, "dim_value" if isinstance(size, int) else "dim_param", size)
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def _symbol(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _size(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _imported(model: Any, inputs: dict[str, tuple[str, list[Any]]]) -> Any:
    """The graph as a Relax module, its weights constants. Raises: UnsupportedError."""
    from tvm.relax.frontend.onnx import from_onnx

    shapes = {name: shape for name, (_, shape) in inputs.items()}
    try:
        return from_onnx(model, shape_dict=shapes, keep_params_in_input=False)
    except Exception as error:
        said = str(error)
        missing = re.search(
            r"not supported for frontend ONNX:\s*(\w+)|operator[s ]+'?(\w+)'? (?:is|are) not", said
        )
        if missing is None:
            raise
        operator = missing[1] or missing[2]
        node = next((n.name for n in model.graph.node if n.op_type == operator), None)
        raise UnsupportedError(operator, node or None, said) from error


def _fused(module: Any) -> Any:
    """Operators as kernels, those that can be as one."""
    import tvm

    return tvm.relax.get_pipeline("zero")(module)


def _tuned(module: Any, target: Any, budget_s: float) -> tuple[Any, str]:
    """The same with faster kernels, and what was done. Channels lie innermost, where vectors take them."""
    import tvm

    innermost = tvm.relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "HWIO"]})
    faster, own, kernels = schedules.tuned(_fused(innermost(module)), target, budget_s)
    return faster, f"tuned for {budget_s:g} s: {own} of {kernels} kernels have a schedule of their own"


def _target(threads: int) -> Any:
    """LLVM for this processor."""
    import tvm

    cpu = tvm.target.codegen.llvm_get_system_cpu()
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": threads})


def _computes_in_bytes(model: Any) -> bool:
    """Whether products take bytes; TVM computes Q/DQ graphs as they are written: in float32."""
    return bool({node.op_type for node in model.graph.node} & {"MatMulInteger", "ConvInteger", "QLinearConv"})


def load(artifact: str, batch_size: int, length: int | None, tuning_s: float, threads: int) -> "Library":
    _use(threads)
    return Library(Path(artifact))


class Library:
    """The machine code, and the virtual machine that calls its kernels."""

    def __init__(self, artifact: Path) -> None:
        import tvm

        self._facts, self._threads = json.loads((artifact / FACTS).read_text()), tvm.runtime.num_threads
        self._tensor, cpu = tvm.runtime.tensor, tvm.cpu()
        self._main = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(artifact / LIBRARY)), cpu)["main"]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        _, shape = next(iter(self._facts["inputs"].values()))
        given = {name: feeds[name] for name in self._facts["inputs"]}
        return program.piecewise(self._piece, given, shape[0])

    def _piece(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = []
        for name, (dtype, shape) in self._facts["inputs"].items():
            array = feeds[name]
            program.check_shape(name, array, [size or array.shape[i] for i, size in enumerate(shape)])
            given.append(self._tensor(np.ascontiguousarray(array, dtype)))
        answers = self._main(*given)
        one = len(self._facts["outputs"]) == 1 and hasattr(answers, "numpy")
        found = [answers] if one else list(answers)
        return {name: t.numpy() for name, t in zip(self._facts["outputs"], found, strict=True)}

    def ran(self) -> dict[str, Any]:
        return {
            "runtime": "tvm",
            "version": version("apache-tvm"),
            "precision": "int8" if self._facts["int8"] else "float32",
            "device": "CPU",
            "threads": self._threads(),
            "notes": f"compiled for {self._facts['target']}, {self._facts['tuned'] or 'untuned'}",
        }
