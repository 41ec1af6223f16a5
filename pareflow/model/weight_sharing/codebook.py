"""A parametrization that looks weights up in a few trained values; and the values, found by k-means."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize


class Codebook(nn.Module):
    """Values of shape (clusters,) to weights: each value's gradient is the sum of its weights' gradients.

    Weights that are zero stay zero: where there are some, zero is the first of the values, and not trained.
    Source: Han et al., 2016, arXiv:1510.00149, section 3.3.
    """

    def __init__(self, weight: torch.Tensor, clusters: int) -> None:
        super().__init__()
        flat = weight.detach().reshape(-1).double().numpy()
        sparse = bool((flat == 0).any())
        values = centroids(flat[flat != 0], clusters - sparse)
        assigned = nearest(flat, values)
        if sparse:
            values = np.concatenate([[0.0], values])
            assigned = np.where(flat == 0, 0, assigned + 1)
        self._shape, self._start = weight.shape, torch.from_numpy(values).to(weight.dtype)
        self.register_buffer("assigned", torch.from_numpy(assigned.astype(np.int32)))
        self.register_buffer("trained", torch.ones(len(values)))
        self.get_buffer("trained")[: int(sparse)] = 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        assigned, trained = self.get_buffer("assigned"), self.get_buffer("trained")
        return (values * trained).index_select(0, assigned).view(self._shape)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Where the values start."""
        return self._start


def share(layer: nn.Module, name: str, clusters: int) -> None:
    """Give the parameter `name` of the layer a codebook, in place."""
    weight = layer.get_parameter(name)
    parametrize.register_parametrization(layer, name, Codebook(weight, clusters), unsafe=True)


def bake(layer: nn.Module, name: str) -> None:
    """Put plain weights in the place of the codebook, in place."""
    with torch.no_grad():
        weight = nn.Parameter(getattr(layer, name).clone())
    parametrize.remove_parametrizations(layer, name)
    setattr(layer, name, weight)


def centroids(values: np.ndarray, clusters: int) -> np.ndarray:
    """Lloyd's k-means of numbers, from starts evenly spaced over their range; ascending.

    Over sorted numbers a step costs clusters · log(numbers), and no order of threads decides a bit. A cluster
    that is left empty keeps its place.
    """
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    found = np.linspace(ordered[0], ordered[-1], clusters)
    for _ in range(300):
        edges = np.searchsorted(ordered, _middles(found), side="left")
        edges = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(edges)
        means = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), found)
        if np.array_equal(means, found):
            break
        found = means
    return found


def nearest(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The position of each number's nearest centroid."""
    positions: np.ndarray = np.searchsorted(_middles(found), values, side="right")
    return positions


def _middles(found: np.ndarray) -> np.ndarray:
    middles: np.ndarray = (found[1:] + found[:-1]) / 2
    return middles
