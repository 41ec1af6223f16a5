"""An exported program with its products in a half precision."""

from typing import TYPE_CHECKING, Any

from pareflow.compiler import signature

if TYPE_CHECKING:
    import torch


def exported(program: Any, dtype: str, device: str) -> Any:
    """The program exported again under autocast: its weights stay fp32, and are cast where they are used.

    Axes that varied still vary. Source: PyTorch, "Automatic mixed precision", which operators are cast.
    """
    import torch

    inner = program.module()

    class Cast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, feeds: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
            with torch.autocast(device, dtype=getattr(torch, dtype)):
                outputs = self.inner(feeds)
            floats = {name: tensor.float() for name, tensor in outputs.items() if tensor.is_floating_point()}
            return {**outputs, **floats}

    (feeds,), _ = program.example_inputs
    return torch.export.export(Cast(), (feeds,), dynamic_shapes=(_axes(program),))


def _axes(program: Any) -> dict[str, dict[int, Any]]:
    """The axes that vary, by input, each with its largest size where it has one."""
    import torch

    return {
        name: {
            axis: torch.export.Dim.DYNAMIC(min=1, max=_largest(program, size))
            for axis, size in enumerate(place.shape)
            if not isinstance(size, int)
        }
        for name, place in signature.places(program).items()
    }


def _largest(program: Any, size: Any) -> int | None:
    found = program.range_constraints.get(size.node.expr)
    return None if found is None or not found.upper.is_Integer else int(found.upper)
