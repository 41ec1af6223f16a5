"""Layers whose weights are drawn from a few trained ones by a hash of their position: no index is stored."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

PRIME = 2**31 - 1


class Positions(torch.autograd.Function):
    """0 … `virtual` - 1; in ONNX a Range up to virtual mod PRIME.

    The exporter stores what it can compute beforehand, and Mod is the operation that it leaves alone.
    """

    @staticmethod
    def forward(ctx: Any, real: torch.Tensor, virtual: int) -> torch.Tensor:
        positions = torch.arange(virtual, device=real.device)
        ctx.mark_non_differentiable(positions)
        return positions

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def symbolic(g: Any, real: Any, virtual: int) -> Any:
        start, step, count, prime = (
            g.op("Constant", value_t=torch.tensor(number)) for number in (0, 1, virtual, PRIME)
        )
        return g.op("Range", start, g.op("Mod", count, prime), step)


class HashedWeight(nn.Module):
    """`real` weights, and for each of the virtual ones a position in them and a sign.

    Position p has the hash ((a·p + b)² + c) mod PRIME: three products of integers, which ONNX has and a
    runtime computes once, when it loads the graph.
    """

    def __init__(self, weight: torch.Tensor, compression: float, key: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.key = tuple(weight.shape), tuple(int(k) for k in key)
        count = max(1, round(weight.numel() / compression))
        self.real = nn.Parameter(torch.zeros(count, dtype=weight.dtype))
        self._fit_to(weight.detach())

    def _fit_to(self, weight: torch.Tensor) -> None:
        """Each real weight is the mean of those that it stands for; all are scaled to their deviation."""
        with torch.no_grad():
            places, signs = self._drawn()
            sums = torch.zeros_like(self.real).index_add(0, places, signs * weight.reshape(-1))
            counts = torch.zeros_like(self.real).index_add(0, places, torch.ones_like(signs))
            self.real.copy_(sums / counts.clamp(min=1))
            self.real.mul_(weight.square().mean().sqrt() / self().square().mean().sqrt().clamp(min=1e-12))

    def _drawn(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The position in the real weights of each virtual one, and its sign."""
        a, b, c = self.key
        positions: torch.Tensor = Positions.apply(self.real, math.prod(self.shape))  # type: ignore[no-untyped-call]
        mixed = (positions * a + b) % PRIME
        drawn = (mixed * mixed + c) % PRIME % (2 * len(self.real))
        signs = torch.where(drawn < len(self.real), 1.0, -1.0).to(self.real.dtype)
        return drawn % len(self.real), signs

    def forward(self) -> torch.Tensor:
        places, signs = self._drawn()
        return (self.real.index_select(0, places) * signs).reshape(self.shape)


class HashedLayer(nn.Module):
    """A layer with hashed weights, and its bias if it has one."""

    def __init__(self, layer: nn.Module, hashed: HashedWeight) -> None:
        super().__init__()
        self.hashed, self.bias = hashed, getattr(layer, "bias", None)

    @property
    def weight(self) -> torch.Tensor:
        """All weights, of the shape that the layer had: networks read them."""
        weight: torch.Tensor = self.hashed()
        return weight


class HashedLinear(HashedLayer):
    """A linear layer with hashed weights."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs, self.weight, self.bias)


class HashedConv2d(HashedLayer):
    """A convolution with hashed weights."""

    def __init__(self, layer: nn.Conv2d, hashed: HashedWeight) -> None:
        super().__init__(layer, hashed)
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(
            images, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class HashedEmbedding(HashedLayer):
    """An embedding with hashed weights, but for the row that fills up (`padding_idx`): it stays as it was."""

    padding: torch.Tensor | None
    """That row, shape (1, width)."""

    def __init__(self, layer: nn.Embedding, hashed: HashedWeight) -> None:
        super().__init__(layer, hashed)
        self.padding_idx = row = layer.padding_idx
        stays = None if row is None else layer.weight.detach()[row : row + 1].clone()
        self.register_buffer("padding", stays)

    @property
    def weight(self) -> torch.Tensor:
        """All rows, which a runtime puts together once, when it loads the graph."""
        drawn: torch.Tensor = self.hashed()
        if self.padding_idx is None or self.padding is None:
            return drawn
        parts = drawn[: self.padding_idx], self.padding, drawn[self.padding_idx + 1 :]
        return torch.cat([part for part in parts if len(part)])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(ids, self.weight)


KINDS: dict[type[nn.Module], type[HashedLayer]] = {
    nn.Linear: HashedLinear,
    nn.Conv2d: HashedConv2d,
    nn.Embedding: HashedEmbedding,
}


def hash_layers(network: nn.Module, compression: float, least: int, seed: int) -> list[str]:
    """Put hashed layers in the place of plain ones with at least so many weights, in place; their names."""
    places: dict[nn.Module, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if path and _plain(module) and module.get_parameter("weight").numel() >= least:
            places.setdefault(module, []).append(path)
    for position, (module, paths) in enumerate(places.items()):
        key = np.random.default_rng([seed, position]).integers(1, PRIME, 3)
        hashed = HashedWeight(module.get_parameter("weight"), compression, key.tolist())
        made = KINDS[type(module)](module, hashed)
        for path in paths:
            network.set_submodule(path, made)
    return [path for paths in places.values() for path in paths]


def _plain(module: nn.Module) -> bool:
    """Whether a hashed layer computes the same: nothing else than zeros is padded, no vector is scaled."""
    zeros = getattr(module, "padding_mode", "zeros") == "zeros"
    return type(module) in KINDS and zeros and getattr(module, "max_norm", None) is None
