"""What may go from a given transformer, ranked by what it is worth."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pareflow.errors import UnsuitableError
from pareflow.model.architecture.transformer_space import Part, TransformerSpace
from pareflow.model.pruning.attention import Attention, attentions
from pareflow.model.pruning.dependencies import Width, channel_scores, dependency_graph, find_widths
from pareflow.model.pruning.layers import Block, blocks, loss_without
from pareflow.model.pruning.saliency import saliencies
from pareflow.workload import LoadedWorkload

SAMPLES = 128
"""Calibration samples that parts are ranked on."""


def attending(network: nn.Module) -> set[nn.Module]:
    """The modules in which tokens attend to each other; without any, a network is no transformer."""
    fused = {module for module in network.modules() if isinstance(module, nn.MultiheadAttention)}
    return fused | {attention.module for attention in attentions(network)}


def transformer_space(network: nn.Module, workload: LoadedWorkload) -> TransformerSpace:
    """All that may go from a network, in copies of it. Raises: UnsuitableError where nothing may.

    Source: Molchanov et al., 2019, arXiv:1906.10771, section 3.1 (heads and neurons, by the first order of
    the loss); Kim et al., 2024, arXiv:2402.02834, section 3 (layers, by the loss without each).
    """
    if not attending(network):
        raise UnsuitableError(
            "the network must be a transformer: `nn.MultiheadAttention`, or a module with linear layers for "
            "queries, keys and values and a number of heads",
            f"`{type(network).__name__}` has neither",
            "Take `blocks` of images, or leave the technique out",
        )
    probe = copy.deepcopy(network).eval()
    space = TransformerSpace(_stacks(probe, workload), tuple(_parts(probe, workload)))
    if space.largest == space.smallest:
        raise UnsuitableError(
            "some heads, neurons between two linear layers, or layers of the transformer must be free to go",
            f"`{type(network).__name__}` has none: heads are in fused projections or single, widths are tied",
            "Write its queries, keys and values as linear layers, or leave the technique out",
        )
    return space


def _stacks(network: nn.Module, workload: LoadedWorkload) -> tuple[tuple[Block, ...], ...]:
    """The blocks around one attention or more that can be dropped, by the list that they are in.

    A network that cannot do without one of them keeps its depth.
    """
    try:
        found = [block for block in blocks(network, workload) if attending(_module(network, block))]
        inner = [b for b in found if not any(o.name.startswith(f"{b.name}.") for o in found)]
        worth = {block: loss_without(block, network, workload, SAMPLES) for block in inner}
    except UnsuitableError:
        return ()
    best_first = sorted(worth, key=lambda block: worth[block], reverse=True)
    lists = dict.fromkeys(block.container for block in inner)
    return tuple(tuple(b for b in best_first if b.container == container) for container in lists)


def _module(network: nn.Module, block: Block) -> nn.Module:
    return network.get_submodule(block.name)


def _parts(network: nn.Module, workload: LoadedWorkload) -> list[Part]:
    """The heads and the neurons that are channels of linear layers alone."""
    graph = dependency_graph(network, workload)
    heads = {frozenset(found.layers): found for found in attentions(network)}
    projections = {layer for layers in heads for layer in layers}
    ends = dict[Width, tuple[list[str], list[str]]]()
    for width in find_widths(graph, network):
        free = frozenset(width.layers) in heads or not projections & {*width.layers}
        linear = _linear_ends(graph, width, network)
        if free and not width.ends and linear is not None:
            ends[width] = linear
    if not ends:
        return []
    worth = saliencies(network, workload, "taylor", SAMPLES)
    scores = channel_scores(list(ends), network, worth)
    return [
        _part(width, givers, takers, heads.get(frozenset(width.layers)), score)
        for (width, (givers, takers)), score in zip(ends.items(), scores, strict=True)
    ]


def _linear_ends(graph: Any, width: Width, network: nn.Module) -> tuple[list[str], list[str]] | None:
    """The linear layers that give these channels, and those that take them; None where others have them too.

    Activations, which have no weights, may lie between.
    """
    names: Mapping[Any, str] = {module: name for name, module in network.named_modules()}
    givers, takers = list[str](), list[str]()
    for dep, _ in width.group:
        module = dep.target.module
        if isinstance(module, nn.Parameter):
            return None
        if not any(True for _ in module.parameters()):
            continue
        gives = graph.is_out_channel_pruning_fn(dep.handler)
        size = getattr(module, "out_features" if gives else "in_features", None)
        if type(module) is not nn.Linear or size != width.size:
            return None
        (givers if gives else takers).append(names[module])
    return (givers, takers) if takers else None


def _part(
    width: Width, givers: list[str], takers: list[str], attention: Attention | None, score: torch.Tensor
) -> Part:
    count = attention.heads if attention else width.size
    ranked = score.view(count, -1).sum(1).argsort(descending=True, stable=True)
    return Part(
        name=attention.name if attention else width.name,
        heads=attention is not None,
        channels=width.size // count,
        givers=tuple(givers),
        takers=tuple(takers),
        ranked=tuple(ranked.tolist()),
    )
