"""Layers as matrices, their singular values seen through their inputs, and two thin layers instead of one."""

from contextlib import ExitStack

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad, unfold

from pareflow.errors import UnsuitableError
from pareflow.model.tied import tied_layers
from pareflow.workload import LoadedWorkload

RIDGE = 1e-2
"""Share of the inputs' mean variance that every direction has at least: few samples do not show all."""

Layer = nn.Linear | nn.Conv2d | nn.Embedding
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Their `forward` reads the weights of the layers in them, which must stay what they are."""


def layers(network: nn.Module, *, embeddings: bool) -> dict[str, Layer]:
    """By name, the layers that can be split: dense, with weights of their own."""
    kinds = (nn.Linear, nn.Conv2d, *([nn.Embedding] if embeddings else []))
    shared = tied_layers(network)
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) in kinds
        and name
        and getattr(module, "groups", 1) == 1
        and module not in shared
        and not isinstance(network.get_submodule(name.rpartition(".")[0]), _READ_WEIGHTS)
    }


def matrix(layer: Layer) -> torch.Tensor:
    """Its weight in float64, shape (outputs, inputs); a convolution's inputs are the values of a patch."""
    weight = layer.weight.detach().double()
    return weight.T if isinstance(layer, nn.Embedding) else weight.flatten(1)


class Inputs:
    """What comes into a layer on some samples: how often, its mean, and its covariance."""

    def __init__(self, layer: Layer) -> None:
        size = 0 if isinstance(layer, nn.Embedding) else matrix(layer).shape[1]
        self.rows = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def see(self, layer: Layer, given: tuple[torch.Tensor, ...]) -> None:
        """A forward pre-hook."""
        if isinstance(layer, nn.Embedding):
            self.rows += given[0].numel()
            return
        rows = _rows(layer, given[0].detach()).double()
        self.rows += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    @property
    def mean(self) -> torch.Tensor:
        return self._sum / self.rows

    @property
    def covariance(self) -> torch.Tensor:
        return self._products / self.rows - torch.outer(self.mean, self.mean)


def _rows(layer: nn.Linear | nn.Conv2d, given: torch.Tensor) -> torch.Tensor:
    """Each vector that the layer's matrix is multiplied with, shape (vectors, inputs)."""
    if isinstance(layer, nn.Linear):
        return given.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = pad(given, layer._reversed_padding_repeated_twice, mode)
    patches = unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def watch(
    network: nn.Module, found: dict[str, Layer], workload: LoadedWorkload, samples: int
) -> dict[str, Inputs]:
    """What comes into each layer on calibration samples; layers that none reaches are left out."""
    seen = {name: Inputs(layer) for name, layer in found.items()}
    network.eval()
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in found.items():
            hooks.enter_context(layer.register_forward_pre_hook(seen[name].see))
        for feeds in workload.feeds("calibration", 32, samples):
            network(*map(torch.from_numpy, feeds.values()))
    return {name: inputs for name, inputs in seen.items() if inputs.rows}


class Factors(nn.Sequential):
    """Two layers in the place of one."""

    @property
    def weight(self) -> torch.Tensor:
        """The last one's: networks ask a layer for its weight's type and device."""
        return self[-1].get_parameter("weight")


class Split:
    """The singular value decomposition of a layer's matrix, or of the matrix times its inputs' deviation.

    With `inputs`, the first ranks are those that keep the layer's outputs, not its weights; what the others
    give on average goes into the bias.
    """

    def __init__(self, name: str, layer: Layer, inputs: Inputs | None) -> None:
        self._layer, self._matrix = layer, matrix(layer)
        aware = None if isinstance(layer, nn.Embedding) else inputs
        self._mean = None if aware is None else aware.mean
        root = None if aware is None else _deviation(name, aware.covariance)
        u, s, vh = torch.linalg.svd(
            self._matrix if root is None else self._matrix @ root, full_matrices=False
        )
        if root is not None:
            vh = torch.linalg.solve_triangular(root, vh, upper=False, left=False)
        self._left, self._right, self._values = u, vh, s

    @property
    def energies(self) -> np.ndarray:
        """The squared singular values, their sum 1."""
        squared: np.ndarray = self._values.square().numpy()
        return squared / max(float(squared.sum()), np.finfo(float).tiny)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._matrix.shape
        return rows, columns

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrices (outputs, rank) and (rank, inputs), of about equal size, whose product is nearest."""
        scale = self._values[:rank].sqrt()
        return self._left[:, :rank] * scale, scale[:, None] * self._right[:rank]

    def layers(self, rank: int) -> Factors:
        """Two layers that do what the one did, as well as this rank can."""
        outer, inner = self.factors(rank)
        first, second = _pair(self._layer, rank)
        first.weight.data.copy_((inner.T if isinstance(first, nn.Embedding) else inner).view_as(first.weight))
        second.weight.data.copy_(outer.view_as(second.weight))
        if second.bias is not None:
            second.bias.data.copy_(self._bias(outer @ inner))
        return Factors(first, second).to(self._layer.weight.dtype).train(self._layer.training)

    def _bias(self, product: torch.Tensor) -> torch.Tensor:
        """The layer's own, and what the product of the factors lacks on average."""
        bias: torch.Tensor | None = getattr(self._layer, "bias", None)
        own: torch.Tensor = torch.zeros(len(product)).double() if bias is None else bias.detach().double()
        if self._mean is None:
            return own
        lacking: torch.Tensor = (self._matrix - product) @ self._mean
        return own + lacking


def _deviation(name: str, covariance: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor of a covariance, with a ridge. Raises: UnsuitableError where nothing varies."""
    variance = float(covariance.diagonal().mean())
    if not variance > 1e-12:
        raise UnsuitableError(
            "what comes into a layer must vary over the calibration samples",
            f"`{name}` sees the same in all of them",
            "Give other or more calibration samples, or set `activation_aware: false`",
        )
    root: torch.Tensor = torch.linalg.cholesky(covariance + RIDGE * variance * torch.eye(len(covariance)))
    return root


def _pair(layer: Layer, rank: int) -> tuple[Layer, nn.Linear | nn.Conv2d]:
    """The empty layers: into `rank` numbers, and out of them."""
    if isinstance(layer, nn.Embedding):
        first = nn.Embedding(layer.num_embeddings, rank, layer.padding_idx)
        return first, nn.Linear(rank, layer.embedding_dim, bias=False)
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
    filters = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,  # type: ignore[arg-type]  # a tuple of two
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
    )
    return filters, nn.Conv2d(rank, layer.out_channels, 1)


def replace(network: nn.Module, new: dict[int, nn.Module]) -> None:
    """Put new modules in place of old ones, by the old ones' `id`, wherever they are used."""
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in new:
            network.set_submodule(name, new[id(module)])
