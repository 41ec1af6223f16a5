"""Batch norms folded into the convolutions before them, as exporters do: the weights that are stored."""

from typing import TYPE_CHECKING

from pareflow.errors import UnsuitableError
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 1e-3
"""Of the largest output."""


def fold_batch_norms(network: "nn.Module", workload: LoadedWorkload) -> None:
    """Fold, in place, each batch norm that follows one convolution and no other; the outputs stay.

    Otherwise an exporter scales every channel of a weight by another number, and equal weights differ.
    Source: Jacob et al., 2018, arXiv:1712.05877, section 3.2. Raises: UnsuitableError where outputs change.
    """
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    inputs = [torch.from_numpy(array) for array in workload.example(2).values()]
    pairs, expected = _followed(network.eval(), inputs)
    paths = {module: path for path, module in network.named_modules()}
    for norm, conv in pairs.items():
        network.set_submodule(paths[conv], fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var,arg-type]
        network.set_submodule(paths[norm], nn.Identity())
    found = _followed(network, inputs)[1]
    for ours, theirs in zip(expected, found, strict=True):
        if not (ours - theirs).abs().max() <= TOLERANCE * ours.abs().max().clamp(min=1e-6):
            raise UnsuitableError(
                "a convolution before a batch norm must feed nothing else",
                f"folding {', '.join(paths[norm] for norm in pairs)} changes the outputs",
                "Leave the technique out",
            )


def _followed(
    network: "nn.Module", inputs: "list[torch.Tensor]"
) -> "tuple[dict[nn.Module, nn.Module], list[torch.Tensor]]":
    """Each batch norm with the convolution whose output it takes, where both run once; all outputs."""
    import torch
    from torch import nn

    from pareflow.network import name_outputs

    made: list[tuple[nn.Module, torch.Tensor]] = []
    taken: list[tuple[nn.Module, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda conv, _, output: made.append((conv, output)))
        for module in network.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ] + [
        module.register_forward_pre_hook(lambda norm, args: taken.append((norm, args[0])))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    with torch.no_grad():
        answers = network(*inputs)
    for hook in hooks:
        hook.remove()
    convs, norms = [conv for conv, _ in made], [norm for norm, _ in taken]
    pairs = {
        norm: conv
        for norm, given in taken
        for conv, output in made
        if output is given and convs.count(conv) == 1 and norms.count(norm) == 1
    }
    arrays = name_outputs(answers, lambda tensor: tensor.numpy())
    return pairs, [torch.from_numpy(array) for array in arrays.values()]
