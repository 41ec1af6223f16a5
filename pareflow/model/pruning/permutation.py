"""Whether a width is what the dependency graph says: if its channels change places, then no answer does."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pareflow.comparison import TOLERANCE, difference
from pareflow.model.pruning.dependencies import Width
from pareflow.network import run_torch
from pareflow.workload import Arrays, LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn

SAMPLES = 3


@dataclass(frozen=True)
class Move:
    """What goes to each place along one dimension of a tensor."""

    tensor: "torch.Tensor"
    dimension: int
    sources: tuple[int, ...]

    def make(self) -> None:
        self._take(self.sources)

    def undo(self) -> None:
        self._take(sorted(range(len(self.sources)), key=self.sources.__getitem__))

    def _take(self, sources: Any) -> None:
        import torch

        places = torch.tensor(sources, device=self.tensor.device)
        self.tensor.copy_(self.tensor.index_select(self.dimension, places))


def understood(
    widths: Sequence[Width], graph: Any, network: "nn.Module", workload: LoadedWorkload
) -> list[Width]:
    """The widths whose channels lie where the graph says, in all that gives and takes them.

    torch-pruning takes `permute` and `view` for element-wise operations: behind a channels-last flatten, or a
    shuffle of channels, it would cut other columns than those of its channels. So the channels of every width
    change places, with all weights that the graph ties to them, and the network must answer as it did; where
    it does not, each width is tried alone. Weights move in place, and back. Widths tied to the outputs of an
    LSTM or to torch's own attention are taken as they are.
    """
    feeds = workload.example(SAMPLES)
    before = run_torch(network.eval(), feeds)
    moves = {width: found for width in widths if (found := _moves(graph, width)) is not None}
    if _same(before, network, feeds, [move for found in moves.values() for move in found]):
        return list(moves)
    return [width for width, found in moves.items() if _same(before, network, feeds, found)]


def _same(before: Arrays, network: "nn.Module", feeds: Arrays, moves: list[Move]) -> bool:
    with _made(moves):
        after = run_torch(network, feeds)
    return all(difference(name, array, after[name]).within(TOLERANCE) for name, array in before.items())


@contextmanager
def _made(moves: list[Move]) -> Iterator[None]:
    for move in moves:
        move.make()
    try:
        yield
    finally:
        for move in reversed(moves):
            move.undo()


def _moves(graph: Any, width: Width) -> list[Move] | None:
    """How its weights follow its channels; None where the graph contradicts itself."""
    order = _order(width.size)
    owner = {channel: unit for unit, channels in enumerate(width.units) for channel in channels}
    moves = list[Move]()
    for item in width.group:
        tensors = _tensors(item.dep, graph.is_out_channel_pruning_fn(item.dep.handler))
        if tensors is None:
            return []
        for tensor, dimension in tensors:
            sources = _sources(item, owner, order, tensor.shape[dimension])
            if sources is None:
                return None
            moves.append(Move(tensor, dimension, sources))
    return moves


def _order(size: int) -> list[int]:
    """Per channel, which one takes its place: drawn, and never each its own."""
    import torch

    drawn: list[int] = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    return drawn[1:] + drawn[:1] if drawn == sorted(drawn) else drawn


def _sources(item: Any, owner: Mapping[int, int], order: list[int], length: int) -> tuple[int, ...] | None:
    """What goes to each place of a tensor this long; None where units have not equal parts of it."""
    places: list[list[int]] = [[] for _ in order]
    for place, channel in sorted(zip(item.idxs, item.root_idxs, strict=True)):
        if channel not in owner or place >= length:
            return None
        places[owner[channel]].append(place)
    if len({len(own) for own in places}) > 1:
        return None
    sources = list(range(length))
    for unit, own in enumerate(places):
        for place, source in zip(own, places[order[unit]], strict=True):
            sources[place] = source
    return tuple(sources)


def _tensors(dep: Any, gives: bool) -> "list[tuple[torch.Tensor, int]] | None":
    """What has these channels, and along which dimension; None for layers whose weights lie otherwise."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd

    layer = dep.target.module
    if isinstance(layer, nn.Parameter):
        return [(layer.data, dep.target.pruning_dim)]
    if isinstance(layer, nn.MultiheadAttention) or (isinstance(layer, nn.LSTM) and gives):
        return None
    if isinstance(layer, nn.LSTM):
        return [(weight.data, 1) for name, weight in layer.named_parameters() if "weight_ih_l0" in name]
    if isinstance(layer, (nn.Linear, _ConvNd)):
        turned = getattr(layer, "transposed", False) and layer.groups == 1
        weight = (layer.weight.data, int(gives == turned))
        return [weight] if not gives or layer.bias is None else [weight, (layer.bias.data, 0)]
    if isinstance(layer, nn.Embedding):
        return [(layer.weight.data, 1)]
    if isinstance(layer, (nn.LayerNorm, nn.GroupNorm, nn.PReLU, _NormBase)):
        held = [getattr(layer, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
        return [(tensor.data, -1) for tensor in held if tensor is not None and tensor.numel() > 1]
    return []
