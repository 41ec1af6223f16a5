"""ExecuTorch's side: exported again in fixed shapes, quantized by PT2E, lowered to XNNPACK, run in Python."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from . import program

MODEL = "model.pte"
FACTS = "facts.json"
MISSING = (r"Operator torch\._ops\.(\S+) is not in Core ATen opset", r"Missing out variants: \{'(.+?)'")
"""How it says that the runtime has no kernel for an operator."""


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("executorch", "torch", "torchao")}


def compile(source: str, into: str, precision: str, batch_size: int, threads: int) -> None:  # noqa: A001
    """Write the program, and what the runtime does not tell of it: names, shapes, and who runs what."""
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    exported = program.read(Path(source))
    feeds = program.example(exported, batch_size)
    made = program.fixed(exported, batch_size)
    if precision != "float32":
        samples = program.calibration(Path(source), batch_size)
        made = _quantized(made, precision == "dynamic_int8", samples, tuple(feeds.values()))
    with program.naming(*MISSING):
        edge = to_edge_transform_and_lower(made, partitioner=_partitioners(precision == "dynamic_int8"))
        taken = get_delegation_info(edge.exported_program().graph_module)
        (Path(into) / MODEL).write_bytes(edge.to_executorch().buffer)
    facts = {
        "inputs": {name: [str(tensor.numpy().dtype), list(tensor.shape)] for name, tensor in feeds.items()},
        "outputs": program.outputs(exported),
        **_shares(taken.delegation_by_operator),
    }
    (Path(into) / FACTS).write_text(json.dumps(facts))


def _shares(counts: Any) -> dict[str, Any]:
    """How many operators XNNPACK took, how many of them quantize, and those that it left to others."""
    operators = {name: count for name, count in counts.items() if name != "getitem"}  # computes nothing
    quantizing = [count for name, count in operators.items() if "decomposed_quantize" in name]
    return {
        "taken": sum(count.delegated for count in operators.values()),
        "quantizing": sum(count.delegated for count in quantizing),
        "left": {name: count.non_delegated for name, count in operators.items() if count.non_delegated},
    }


def _quantized(made: Any, dynamic: bool, samples: list[program.Arrays], example: tuple[Any, ...]) -> Any:
    """With fake quantization around what XNNPACK can compute in int8; weights per channel."""
    import torch
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    configuration = xnnpack_quantizer.get_symmetric_quantization_config(
        is_per_channel=True, is_dynamic=dynamic
    )
    quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(configuration)
    prepared = prepare_pt2e(made.module(), quantizer)
    for feeds in samples:
        prepared(*(torch.from_numpy(array) for array in feeds.values()))
    return torch.export.export(convert_pt2e(prepared), example)


def _partitioners(dynamic: bool) -> list[Any]:
    """Products with dynamic scales are taken one by one, and first: a group of them is not recognized."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )

    return [*([XnnpackDynamicallyQuantizedPartitioner()] if dynamic else []), XnnpackPartitioner()]


def load(artifact: str, precision: str, batch_size: int, threads: int) -> "Method":
    return Method(Path(artifact), threads)


class Method:
    """The program's `forward`, loaded; the thread pool belongs to the process."""

    def __init__(self, artifact: Path, threads: int) -> None:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        self._threads = portable_lib._threadpool_get_thread_count
        self._facts = json.loads((artifact / FACTS).read_text())
        self._program = Runtime.get().load_program(artifact / MODEL)
        self._method = self._program.load_method("forward")

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        _, shape = next(iter(self._facts["inputs"].values()))
        return program.piecewise(self._piece, feeds, shape[0])

    def _piece(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        given = []
        for name, (dtype, shape) in self._facts["inputs"].items():
            program.check_shape(name, feeds[name], shape)
            given.append(torch.from_numpy(np.ascontiguousarray(feeds[name], dtype)))
        answers = self._method.execute(given)
        return {name: t.numpy().copy() for name, t in zip(self._facts["outputs"], answers, strict=True)}

    def ran(self) -> dict[str, Any]:
        facts = self._facts
        count = facts["taken"] + sum(facts["left"].values())
        share = f"XNNPACK runs {facts['taken']} of {count} operators"
        left = f"; in portable kernels: {', '.join(sorted(facts['left']))}" if facts["left"] else ""
        return {
            "runtime": "executorch",
            "version": version("executorch"),
            "precision": "int8" if facts["quantizing"] else "float32",
            "device": "CPU",
            "threads": self._threads(),
            "notes": share + left,
        }
