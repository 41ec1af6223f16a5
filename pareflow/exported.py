"""The form `exported`: a network as a program of torch's operators, which needs none of its own classes.

It takes one mapping of named tensors and gives another. Beside it lie a few inputs of the calibration split,
for backends that quantize. Source: PyTorch, torch.export, "Dynamic shapes", and "Serialization".
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.comparison import first_line, real_inputs
from pareflow.errors import ExportError
from pareflow.workload import Arrays, LoadedWorkload

CALIBRATION = "calibration.npz"
CALIBRATION_SAMPLES = 64
CALIBRATION_BYTES = 2**25
LARGEST_BATCH = 1024
LONGEST = 4096
"""Axes that vary have a bound, by which runtimes plan memory: this, or twice the longest sample seen."""

NameOutputs = Callable[[Any, Callable[[Any], Any]], dict[str, Any]]


def write(program: Any, workload: LoadedWorkload, path: Path) -> None:
    """Write a program, and calibration data beside it."""
    save(program, path)
    np.savez(path.with_name(CALIBRATION), **calibration(workload))  # type: ignore[arg-type]


def save(program: Any, path: Path) -> None:
    """Write a program alone, by way of memory: on a full disk torch's own writer aborts the process."""
    import torch

    content = io.BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def export(network: Any, workload: LoadedWorkload, name_outputs: NameOutputs) -> Any:
    """The program, its batch and the workload's `dynamic_axes` left open. Raises: ExportError."""
    import torch

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return name_outputs(self.network(*feeds.values()), lambda tensor: tensor)

    feeds = _tensors(workload.example(batch_size=2))
    try:
        program = torch.export.export(
            Named().eval(), (feeds,), dynamic_shapes=(_varying_axes(workload, feeds),)
        )
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            "the network must become an exported program",
            f"torch.export raised {type(error).__name__}: {first_line(error)}",
            "Rewrite the operation it names, or take a backend of the form onnx",
        ) from error
    return _without_places(program)


def _varying_axes(workload: LoadedWorkload, names: Iterable[str]) -> dict[str, dict[int, Any]]:
    """Per input, the axes that vary, each with its bound."""
    from torch.export import Dim

    given, seen = workload.definition.dynamic_axes(), list(real_inputs(workload))

    def bound(name: str, axis: int) -> int:
        longest = max(2 * feeds[name].shape[axis] for feeds in seen)
        return max(LONGEST, longest) if axis else LARGEST_BATCH

    return {
        name: {axis: Dim.DYNAMIC(min=1, max=bound(name, axis)) for axis in {0, *given.get(name, {})}}
        for name in names
    }


def _without_places(program: Any) -> Any:
    """The program without the paths of the files it was traced through: they are this machine's."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def runner(program: Any) -> Callable[[Arrays], Arrays]:
    """The program as a function of named arrays."""
    import torch

    from pareflow.torch_network import as_array

    run = program.module()

    def answer(feeds: Arrays) -> Arrays:
        with torch.inference_mode():
            return {name: as_array(tensor) for name, tensor in run(_tensors(feeds)).items()}

    return answer


def calibration(workload: LoadedWorkload) -> Arrays:
    """The inputs of a few calibration samples: at most `CALIBRATION_SAMPLES`, and `CALIBRATION_BYTES`."""
    first = workload.example(batch_size=1)
    fitting = CALIBRATION_BYTES // max(1, sum(array.nbytes for array in first.values()))
    count = min(CALIBRATION_SAMPLES, len(workload.split("calibration")), max(1, fitting))
    return workload.example(count)


def _tensors(feeds: Arrays) -> dict[str, Any]:
    from pareflow.torch_network import as_tensor

    return {name: as_tensor(array) for name, array in feeds.items()}
