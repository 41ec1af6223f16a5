"""Whole attention heads."""

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pareflow.comparison import mismatch
from pareflow.errors import UnsuitableError
from pareflow.model.pruning.attention import Attention, attentions
from pareflow.model.pruning.dependencies import (
    Width,
    channel_scores,
    check_runs,
    dependency_graph,
    find_widths,
)
from pareflow.model.pruning.saliency import PruningTechnique, repair, saliencies
from pareflow.network import run_torch
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


class HeadPruning(PruningTechnique):
    """Remove the attention heads that are worth least, from queries, keys, values and what follows.

    Every attention keeps one head at least. Networks whose queries, keys and values are linear layers of
    their own, as in BERT; fused ones (`nn.MultiheadAttention`) and shared keys are not for this.
    Source: Michel et al., 2019, arXiv:1905.10650, sections 2.2 and 4.1. Departures: a head's score adds up
    its weights' saliencies; with a global scope it is divided by the norm of its layer's scores, as there.
    """

    name: ClassVar[str] = "head_pruning"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate", "torch-pruning")
    taking: ClassVar[tuple[str, ...]] = ("ratio",)

    ratio: float = Field(default=0.5, gt=0, lt=1, description="share of the heads that go")
    scope: Literal["global", "layer"] = Field(
        default="layer", description="rank the heads of all attentions together, or each one's alone"
    )

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        pruned = copy.deepcopy(network)
        found = self._attentions(pruned)
        graph = dependency_graph(pruned, workload)
        widths = _widths(graph, pruned, found)
        worth = saliencies(pruned, workload, self.importance, self.samples)
        scores = channel_scores(widths, pruned, worth)
        per_head = [s.view(a.heads, -1).sum(1) for a, s in zip(found, scores, strict=True)]
        cuts = [cut for cut in zip(found, widths, self._gone(found, per_head), strict=True) if cut[2]]
        unheard = _unheard(graph, pruned, {width: a.channels(gone) for a, width, gone in cuts})
        for attention, width, gone in cuts:
            width.remove(graph, attention.channels(gone))
            attention.say(attention.heads - len(gone))
        check_runs(pruned, network, workload)
        _check_whole(pruned, unheard, workload)
        return repair(pruned, workload, self)

    def takes(self, network: "nn.Module", workload: LoadedWorkload) -> list[int] | None:
        """How many heads go of each attention; of all together, their worth decides. Raises: as `_gone`."""
        import torch

        if self.scope == "global":
            return None
        found = self._attentions(network)
        any_worth = [torch.zeros(attention.heads) for attention in found]
        return [len(gone) for gone in self._gone(found, any_worth)]

    def _attentions(self, network: "nn.Module") -> list[Attention]:
        """Raises: UnsuitableError where no attention has several heads."""
        found = [attention for attention in attentions(network) if attention.heads > 1]
        if not found:
            raise UnsuitableError(
                "a network must have attention with several heads, its projections in linear layers",
                f"`{type(network).__name__}` has none",
                "Leave `head_pruning` out",
            )
        return found

    def _gone(self, found: list[Attention], scores: "list[torch.Tensor]") -> list[list[int]]:
        """Per attention, the heads that go. Raises: UnsuitableError where none would."""
        if self.scope == "layer":
            gone = [least(score, _rounded(self.ratio * len(score))) for score in scores]
        else:
            gone = least_of_all(scores, _rounded(self.ratio * sum(map(len, scores))))
        if not any(gone):
            heads = ", ".join(f"`{attention.name}` {attention.heads}" for attention in found)
            raise UnsuitableError(
                "at least one head must go, and one must stay in each attention",
                f"at ratio {self.ratio:g} none goes of {heads}",
                "Raise `ratio`, or take `scope: global`",
            )
        return gone


def _rounded(count: float) -> int:
    """Half a head up; to even, three eighths, a half and five eighths of four heads were all two."""
    return int(count + 0.5)


def least(scores: "torch.Tensor", count: int) -> list[int]:
    """The positions of so many lowest scores, all but one at most."""
    order: list[int] = scores.argsort(stable=True).tolist()
    return order[: min(count, len(scores) - 1)]


def least_of_all(scores: "list[torch.Tensor]", count: int) -> list[list[int]]:
    """The same over several layers, each divided by its norm; the best of each layer always stays."""
    ranked = [
        (float(score[head] / score.norm()), layer, head)
        for layer, score in enumerate(scores)
        for head in least(score, len(score))
    ]
    gone = sorted(ranked)[:count]
    return [[head for _, of, head in gone if of == layer] for layer in range(len(scores))]


def _widths(graph: Any, network: "nn.Module", found: list[Attention]) -> list[Width]:
    """The width of each attention's heads. Raises: UnsuitableError where it is tied to other layers."""
    widths = find_widths(graph, network)
    by_layers = {frozenset(width.layers): width for width in widths}
    for attention in found:
        if frozenset(attention.layers) not in by_layers:
            tied = next((w.layers for w in widths if {*w.layers} & {*attention.layers}), ())
            raise UnsuitableError(
                f"queries, keys and values of `{attention.name}` must depend on each other and on no others",
                f"these are tied: {', '.join(tied) or 'none'}",
                "Leave `head_pruning` out",
            )
    return [by_layers[frozenset(attention.layers)] for attention in found]


def _unheard(graph: Any, network: "nn.Module", cuts: dict[Width, list[int]]) -> "nn.Module":
    """A copy whose linear layers take these channels times zero."""
    from torch import nn

    names = {module: name for name, module in network.named_modules()}
    made = copy.deepcopy(network).eval()
    for width, channels in cuts.items():
        for dep, places in width.part(graph, channels):
            layer = dep.target.module
            if isinstance(layer, nn.Linear) and not graph.is_out_channel_pruning_fn(dep.handler):
                made.get_parameter(f"{names[layer]}.weight").data[:, places] = 0
    return made


def _check_whole(pruned: "nn.Module", unheard: "nn.Module", workload: LoadedWorkload) -> None:
    """Raises: UnsuitableError where other things than whole heads are gone."""
    feeds = workload.example(batch_size=3)
    found = mismatch(lambda fed: run_torch(unheard, fed), lambda fed: run_torch(pruned, fed), iter([feeds]))
    if found:
        raise UnsuitableError(
            "a network without some heads must answer as if nothing took what they give",
            found,
            "Leave `head_pruning` out, or lay the channels of each head side by side: `view(…, heads, size)`",
        )
