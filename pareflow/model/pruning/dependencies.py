"""Which channels go together: torch-pruning's dependency graph of a network."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pareflow.errors import UnsuitableError
from pareflow.network import run_torch
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Width:
    """Channels of one or more layers that are tied: they are removed from all of them or from none.

    `layers` names those that give the channels: one for an inner width, several where a shortcut adds them
    up. `ends` says whether the channels are the network's own output. `units` are the channels of the first
    layer, those that only go together as one: the two halves of a fused gate (GLU, SwiGLU) are pairs.
    """

    name: str
    units: tuple[tuple[int, ...], ...]
    layers: tuple[str, ...]
    ends: bool
    group: Any

    @property
    def size(self) -> int:
        """How many channels, a pair counted once."""
        return len(self.units)

    def remove(self, graph: Any, channels: Sequence[int]) -> None:
        """Take these channels out of every layer that has them, in place; what is frozen stays so, though its
        parameters are new ones. Raises: UnsuitableError."""
        frozen = [name for name, parameter in graph.model.named_parameters() if not parameter.requires_grad]
        with _understood(graph.model):
            self.part(graph, channels).prune()
        for name in frozen:
            graph.model.get_parameter(name).requires_grad_(False)

    def part(self, graph: Any, channels: Sequence[int]) -> Any:
        """torch-pruning's group of all that goes with these channels."""
        return _taken(graph, self.group[0], [channel for unit in channels for channel in self.units[unit]])


def _taken(graph: Any, root: Any, channels: list[int]) -> Any:
    """The group of all that goes with these channels of a root."""
    return graph.get_pruning_group(root.dep.target.module, root.dep.handler, channels)


def dependency_graph(network: "nn.Module", workload: LoadedWorkload) -> Any:
    """The graph of a network, found by running it on two samples. Raises: UnsuitableError.

    Source: Fang et al., 2023, arXiv:2301.12900, section 3.
    """
    import torch
    import torch_pruning

    inputs = tuple(map(torch.from_numpy, workload.example(batch_size=2).values()))
    with _differentiable(network), _understood(network):
        return torch_pruning.DependencyGraph().build_dependency(
            network.eval(), inputs, forward_fn=lambda module, given: module(*given), verbose=False
        )


@contextmanager
def _differentiable(network: "nn.Module") -> Iterator[None]:
    """The graph is read from the gradients' own: every parameter must take part."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    yield
    for parameter in frozen:
        parameter.requires_grad_(False)


@contextmanager
def _understood(network: "nn.Module") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UnsuitableError(
            f"torch-pruning must understand what depends on what in `{type(network).__name__}`",
            f"it raises {_said(error)}",
            "Build the network of torch's own layers, or leave this technique out",
        ) from error


def find_widths(graph: Any, network: "nn.Module") -> list[Width]:
    """Every width of a linear or convolutional layer, those that are tied as one.

    Left out are widths that come in groups (grouped convolutions, group norms, the heads of torch's own
    attention): their channels are not free.
    Raises: UnsuitableError.
    """
    import torch_pruning

    kinds = [torch_pruning.ops.TORCH_CONV, torch_pruning.ops.TORCH_LINEAR]
    names = {module: name for name, module in network.named_modules()}
    with _understood(network):
        groups = list(graph.get_all_groups(root_module_types=kinds))
        return [_width(graph, group, names) for group in groups if not _comes_in_groups(graph, group)]


def _width(graph: Any, group: Any, names: Mapping["nn.Module", str]) -> Width:
    from torch import nn

    gives = [dep.target for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
    givers = [node for node in gives if isinstance(node.module, (nn.Linear, nn.Embedding)) or _mixes(node)]
    return Width(
        name=names[group[0].dep.target.module],
        units=_units(graph, group),
        layers=tuple(dict.fromkeys(names[node.module] for node in givers)),
        ends=any(not node.outputs for node in gives),
        group=group,
    )


def _units(graph: Any, group: Any) -> tuple[tuple[int, ...], ...]:
    """The channels of the root, each with those that it drags along.

    Two channels differ in some bit of their numbers: where all without that bit are asked for, the other
    comes only if it is dragged.
    """
    size = len(group[0].idxs)
    first = list(range(size))
    if any(mapping is not None for dep, _ in group for mapping in dep.index_mapping):
        for bit in range((size - 1).bit_length()):
            root = _taken(graph, group[0], [c for c in range(size) if not c >> bit & 1])[0]
            for channel, of in zip(root.idxs, root.root_idxs, strict=True):
                least, other = sorted((first[channel], first[of]))
                if least != other:
                    first = [least if known == other else known for known in first]
    units: dict[int, list[int]] = {}
    for channel, known in enumerate(first):
        units.setdefault(known, []).append(channel)
    return tuple(map(tuple, units.values()))


def _mixes(node: Any) -> bool:
    """Whether it is a convolution whose outputs are others than its inputs: not a depthwise one."""
    from torch.nn.modules.conv import _ConvNd

    return isinstance(node.module, _ConvNd) and not _depthwise(node.module)


def _depthwise(layer: Any) -> bool:
    return bool(layer.groups == layer.out_channels and layer.groups > 1)


def _comes_in_groups(graph: Any, group: Any) -> bool:
    from torch import nn

    for dep, _ in group:
        pruner, module = graph.get_pruner_of_module(dep.target.module), dep.target.module
        if isinstance(module, nn.MultiheadAttention) and module.num_heads > 1:
            return True  # torch-pruning counts no heads, and would cut channels whichever head they are of
        if pruner is None or (hasattr(module, "out_channels") and _depthwise(module)):
            continue
        out = graph.is_out_channel_pruning_fn(dep.handler)
        count = pruner.get_out_channel_groups if out else pruner.get_in_channel_groups
        if count(module) > 1:
            return True
    return False


def channel_scores(
    found: Sequence[Width], network: "nn.Module", saliencies: Mapping[str, "torch.Tensor"]
) -> "list[torch.Tensor]":
    """Per width, the score of each channel: the sum of the saliencies of every weight that goes with it.

    torch-pruning's group importance adds up what lies where the weights do, so the saliencies lie there
    meanwhile. Its own Taylor importance leaves out batch norms, and its Hessian importance keeps one sample
    only (1.6.1), so gradients are ours.
    """
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    add_up = GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None)
    with _standing_in(network, saliencies):
        scores = [add_up(width.group) for width in found]
    return [_per_unit(score, width.units) for width, score in zip(found, scores, strict=True)]


def _per_unit(scores: "torch.Tensor", units: Sequence[Sequence[int]]) -> "torch.Tensor":
    import torch

    places = torch.tensor([place for place, unit in enumerate(units) for _ in unit], device=scores.device)
    members = scores[[channel for unit in units for channel in unit]]
    return scores.new_zeros(len(units)).index_add(0, places, members)


@contextmanager
def _standing_in(network: "nn.Module", saliencies: Mapping[str, "torch.Tensor"]) -> Iterator[None]:
    weights = {name: parameter.data for name, parameter in network.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.data = saliencies[name]
    yield
    for name, parameter in network.named_parameters():
        parameter.data = weights[name]


def check_runs(pruned: "nn.Module", network: "nn.Module", workload: LoadedWorkload) -> None:
    """Raises: UnsuitableError unless the pruned network takes and gives what the network did."""
    feeds = workload.example(batch_size=3)
    former = copy.deepcopy(network).eval()
    wanted = {name: array.shape for name, array in run_torch(former, feeds).items()}
    try:
        got = {name: array.shape for name, array in run_torch(pruned.eval(), feeds).items()}
    except Exception as error:
        raise _changed(network, f"its `forward` raises {_said(error)}") from error
    if got != wanted:
        raise _changed(network, f"it gives {got} where it gave {wanted}")


def _changed(network: "nn.Module", found: str) -> UnsuitableError:
    return UnsuitableError(
        f"`{type(network).__name__}` must run when some of its parts are gone",
        found,
        "Write its `forward` without fixed sizes, or exempt the layer",
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
