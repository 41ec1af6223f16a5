"""Masks: which weights of a layer are zero, and stay so while it trains."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pareflow.errors import UnsuitableError
from pareflow.model.tied import tied_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    Masks = Mapping[str, torch.Tensor]
    Layers = Mapping[str, Any]

MASK = "pruning_mask"
"""A buffer beside each weight while it trains: true where a weight stays; so checkpoints hold it."""

Scope = Literal["global", "layer"]


def prunable(network: "nn.Module") -> dict[str, "nn.Module"]:
    """The layers with matrix products and weights of their own, by name.

    Raises: UnsuitableError where there are none.
    """
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    shared = tied_layers(network)
    found: dict[str, nn.Module] = {
        n: m for n, m in network.named_modules() if isinstance(m, (nn.Linear, _ConvNd)) and m not in shared
    }
    if not found:
        raise UnsuitableError(
            "a network must have linear or convolutional layers for this, with weights of their own",
            f"`{type(network).__name__}` has none",
            "Leave this technique out",
        )
    return found


def weights_of(layers: "Layers", scores: "Masks") -> "dict[str, torch.Tensor]":
    """The scores of the layers' weights; a weight that is masked already has the lowest."""
    found = {name: scores[f"{name}.weight" if name else "weight"] for name in layers}
    masked = {name: getattr(layer, MASK, None) for name, layer in layers.items()}
    return {name: _lowest(score, masked[name]) for name, score in found.items()}


def _lowest(scores: "torch.Tensor", mask: "torch.Tensor | None") -> "torch.Tensor":
    return scores if mask is None else scores.masked_fill(~mask, -1.0)


def all_but_smallest(scores: "torch.Tensor", share: float) -> "torch.Tensor":
    """True for all but this share of the scores, rounded to a whole number of them; of the same shape."""
    import torch

    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[scores.flatten().argsort(stable=True)[: round(share * scores.numel())]] = False
    return keep.view_as(scores)


def choose_masks(scores: "Masks", shares: Mapping[str, float], scope: Scope) -> "dict[str, torch.Tensor]":
    """Per layer its mask. Layers of equal share are ranked together where the scope is global.

    Raises: UnsuitableError where a layer would lose every weight.
    """
    import torch

    masks = dict[str, torch.Tensor]()
    for names in _ranked_together(shares, scope):
        joint = torch.cat([scores[name].flatten() for name in names])
        sizes = [scores[name].numel() for name in names]
        parts = torch.split_with_sizes(all_but_smallest(joint, shares[names[0]]), sizes)
        masks |= {name: part.view_as(scores[name]) for name, part in zip(names, parts, strict=True)}
    for name, mask in masks.items():
        if not mask.any():
            raise UnsuitableError(
                "every layer must keep some of its weights",
                f"`{name}` would lose all {mask.numel()}",
                "Prune less, take `scope: layer`, or give it a share of its own in `layers`",
            )
    return masks


def _ranked_together(shares: Mapping[str, float], scope: Scope) -> Iterable[list[str]]:
    if scope == "layer":
        return [[name] for name in shares]
    return [[name for name in shares if shares[name] == share] for share in dict.fromkeys(shares.values())]


def attach_masks(layers: "Layers") -> None:
    """A mask beside each weight, true throughout."""
    import torch

    for layer in layers.values():
        layer.register_buffer(MASK, torch.ones_like(layer.weight, dtype=torch.bool))


def put_masks(layers: "Layers", masks: "Masks") -> None:
    """These masks instead of the former ones."""
    for name, mask in masks.items():
        getattr(layers[name], MASK).copy_(mask)


def zero_masked(layers: "Layers") -> None:
    """Zero what is masked."""
    for layer in layers.values():
        layer.weight.data.mul_(getattr(layer, MASK))


def detach_masks(layers: "Layers") -> None:
    """Leave the zeros, and nothing else."""
    for layer in layers.values():
        delattr(layer, MASK)
