"""Whole channels: convolutions, feed-forward layers, and what shortcuts tie together, made narrower."""

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.pruning.attention import attentions
from pareflow.model.pruning.dependencies import (
    Width,
    channel_scores,
    check_runs,
    dependency_graph,
    find_widths,
)
from pareflow.model.pruning.masks import all_but_smallest
from pareflow.model.pruning.permutation import understood
from pareflow.model.pruning.saliency import PruningTechnique, Share, cubic, repair, saliencies, shares
from pareflow.model.tied import tied_layers
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


class ChannelPruning(PruningTechnique):
    """Make layers narrower by the channels that are worth least: smaller tensors, fewer products.

    Channels that depend on each other go together, and are scored together. The network's outputs, widths in
    groups, those of layers that share a weight, and attention's heads (`head_pruning`) stay, and so does a
    width whose channels do not lie where the graph of dependencies says. The two halves of a fused gate lose
    the same channels; a pair counts once. Kept widths are multiples of `round_to`, to the nearest, and never
    below it; a width that is no greater stays.
    Source: Fang et al., 2023, arXiv:2301.12900, sections 3.2 and 3.3, by torch-pruning; scores: Li et al.,
    2017, arXiv:1608.08710, section 3 (magnitude, here squared), Molchanov et al., 2019, arXiv:1906.10771,
    section 3.1 (taylor); steps: Zhu and Gupta, 2017, arXiv:1710.01878, section 3. Departure: with a global
    scope, magnitudes are divided by their mean per width.
    """

    name: ClassVar[str] = "channel_pruning"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate", "torch-pruning")
    taking: ClassVar[tuple[str, ...]] = ("ratio", "widths", "scope", "round_to", "layers")

    ratio: float = Field(default=0.5, gt=0, lt=1, description="share of the channels that go")
    widths: Literal["inner", "all"] = Field(
        default="inner", description="widths of a single layer, or also those that shortcuts tie together"
    )
    scope: Literal["global", "layer"] = Field(
        default="layer", description="rank the channels of all widths together, or each width's alone"
    )
    round_to: int = Field(default=8, ge=1, description="kept widths are multiples of this")
    steps: int = Field(
        default=1, ge=1, description="in how many steps it narrows, each repaired by `epochs`; 1 is one shot"
    )
    layers: dict[str, Share] = Field(
        default={}, description="ratio by pattern of layer names, in place of `ratio`; 0 exempts"
    )

    @property
    def passes(self) -> int:
        """Of all the repairs."""
        return self.steps * self.epochs

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        pruned = copy.deepcopy(network)
        first = dict[str, int]()
        for step in range(1, self.steps + 1):
            left = self._narrow(pruned, workload, first, cubic(step, self.steps))
            if step == self.steps:
                self._check(left, first)
            check_runs(pruned, network, workload)
            pruned = repair(pruned, workload, self, stage=f"fit-{step}")
        return pruned

    def takes(self, network: "nn.Module", workload: LoadedWorkload) -> dict[str, int] | None:
        """How many channels stay of each width that shrinks; in steps, training in between decides."""
        if self.steps > 1:
            return None
        probe = copy.deepcopy(network)
        scores = self._scores(dependency_graph(probe, workload), probe, workload)
        return {w.name: size for w, size in self._left(scores, {}, 1.0).items() if size < w.size}

    def _candidates(self, graph: Any, network: "nn.Module", workload: LoadedWorkload) -> list[Width]:
        """The widths that may shrink. Raises: UnsuitableError where there are none."""
        heads = {layer for attention in attentions(network) for layer in attention.layers}
        shared = tied_layers(network)
        free = [
            width
            for width in find_widths(graph, network)
            if not width.ends and not heads & {*width.layers} and not _within(width) & shared
        ]
        known = understood(free, graph, network, workload)
        found = [w for w in known if self.widths == "all" or len(w.layers) == 1]
        if not found:
            raise UnsuitableError(
                f"some width must be free to shrink (`widths: {self.widths}`)",
                f"outputs, heads and shared weights aside, `{type(network).__name__}` has these, "
                f"tied by shortcuts: {_listed(known)}; with channels in another order than torch-pruning "
                f"takes them in: {_listed([w for w in free if w not in known])}",
                "Take `widths: all`" if known else "Leave this technique out",
            )
        return found

    def _scores(
        self, graph: Any, network: "nn.Module", workload: LoadedWorkload
    ) -> "dict[Width, torch.Tensor]":
        """What each channel is worth, of each width that may shrink. Raises: UnsuitableError."""
        found = self._candidates(graph, network, workload)
        worth = saliencies(network, workload, self.importance, self.samples)
        return dict(zip(found, channel_scores(found, network, worth), strict=True))

    def _narrow(
        self, network: "nn.Module", workload: LoadedWorkload, first: dict[str, int], grown: float
    ) -> dict[str, int]:
        """Remove the channels worth least until `grown` of the ratio is gone, in place; the sizes left.

        The graph is made anew: of one that was cut, the parts of a split are no longer right (1.6.0).
        """
        graph = dependency_graph(network, workload)
        scores = self._scores(graph, network, workload)
        left = self._left(scores, first, grown)
        for width, size in left.items():
            least = scores[width].argsort(stable=True)[: width.size - size]
            if len(least):
                width.remove(graph, sorted(least.tolist()))
        return {width.name: size for width, size in left.items()}

    def _left(
        self, scores: "dict[Width, torch.Tensor]", first: dict[str, int], grown: float
    ) -> dict[Width, int]:
        """How many channels of each width stay once `grown` of the ratio is gone. Raises: UnsuitableError."""
        for width in scores:
            first.setdefault(width.name, width.size)
        wanted = shares([width.name for width in scores], self.ratio, self.layers)
        kept = self._kept(scores, first, {name: share * grown for name, share in wanted.items()})
        return {width: self._rounded(kept[width], width.size) for width in scores}

    def _kept(
        self, scores: "dict[Width, torch.Tensor]", first: dict[str, int], gone: dict[str, float]
    ) -> dict[Width, float]:
        """How many channels of each width stay, before rounding."""
        if self.scope == "layer":
            return {width: first[width.name] * (1 - gone[width.name]) for width in scores}
        kept = dict[Width, float]()
        for share in set(gone.values()):
            kept |= self._ranked({w: s for w, s in scores.items() if gone[w.name] == share}, first, share)
        return kept

    def _ranked(
        self, scores: "dict[Width, torch.Tensor]", first: dict[str, int], share: float
    ) -> dict[Width, float]:
        import torch

        even = self.importance == "magnitude"
        joint = torch.cat([score / score.mean() if even else score for score in scores.values()])
        stay = sum(first[width.name] for width in scores) * (1 - share)
        stays = all_but_smallest(joint, max(0.0, 1 - stay / len(joint)))
        parts = torch.split_with_sizes(stays, [width.size for width in scores])
        return {width: int(part.sum()) for width, part in zip(scores, parts, strict=True)}

    def _rounded(self, kept: float, size: int) -> int:
        """The multiple of `round_to` nearest to `kept`, at least one of it, and no more than there are."""
        return min(size, max(1, int(kept / self.round_to + 0.5)) * self.round_to)

    def _check(self, left: dict[str, int], first: dict[str, int]) -> None:
        """Raises: UnsuitableError where every width stayed as it was."""
        if all(size == first[name] for name, size in left.items()):
            sizes = ", ".join(f"`{name}` {size}" for name, size in left.items())
            raise UnsuitableError(
                f"some width must shrink, to a multiple of {self.round_to}",
                f"at ratio {self.ratio:g} all stay as they are: {sizes}",
                "Raise `ratio`, or lower `round_to`",
            )


def _within(width: Width) -> "set[nn.Module]":
    """All that would lose channels: what gives them, what takes them, and what lies between."""
    return {dependency.target.module for dependency, _ in width.group}


def _listed(widths: list[Width]) -> str:
    return ", ".join(f"`{width.name}`" for width in widths) or "none"
