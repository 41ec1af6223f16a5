"""What an exported program takes: checked in front of runtimes that would not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pareflow.errors import WorkloadError
from pareflow.workload import Arrays

Takes = Mapping[str, Any]
"""By input, in order: `dtype`, and `shape` with None where an axis varies."""


def of(program: Any) -> Takes:
    """The signature of a program that takes one mapping of named tensors. JSON."""
    return {
        name: {
            "dtype": str(place.dtype).removeprefix("torch."),
            "shape": [size if isinstance(size, int) else None for size in place.shape],
        }
        for name, place in places(program).items()
    }


def places(program: Any) -> dict[str, Any]:
    """What stands for each input in a program, by name, in order: a tensor whose open sizes are symbols."""
    (feeds,), _ = program.example_inputs
    named = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    found = [node.meta["val"] for node in program.graph.nodes if node.name in named]
    return dict(zip(feeds, found, strict=True))


def checked(feeds: Mapping[str, np.ndarray], takes: Takes) -> Arrays:
    """The inputs that are taken, in their order, contiguous. Raises: WorkloadError."""
    missing = [name for name in takes if name not in feeds]
    if missing:
        raise WorkloadError(
            f"the inputs must be {', '.join(takes)}",
            f"`{missing[0]}` is missing; given are {', '.join(feeds) or 'none'}",
            "Mend the workload's `preprocess()`",
        )
    for name, wanted in takes.items():
        array = feeds[name]
        if str(array.dtype) != wanted["dtype"] or not _fits(array.shape, wanted["shape"]):
            raise WorkloadError(
                f"`{name}` must be {wanted['dtype']} of shape {_said(wanted['shape'])}",
                f"it is {array.dtype} of shape {_said(array.shape)}",
                "Mend the workload's `preprocess()`",
            )
    return {name: np.ascontiguousarray(feeds[name]) for name in takes}


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size == fixed if fixed is not None else size > 0 for size, fixed in zip(shape, wanted, strict=True)
    )


def _said(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
