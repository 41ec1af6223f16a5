"""A codebook of a few values per layer."""

import copy
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.folding import fold_batch_norms
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn


class KmeansSharing(TrainedTechnique):
    """Let all weights of a layer share a few values, found by k-means and then trained.

    The network is as large and as fast as before in memory; packed (`onnxruntime(packed=True)`), a weight
    takes log2(clusters) bits or less. Zeros stay zero, so that it follows a pruning.
    Source: Han et al., 2016, arXiv:1510.00149, section 3. Departures: AdamW trains the values; zero, where
    a layer has zeros, is one of them.
    """

    name: ClassVar[str] = "kmeans_sharing"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    clusters: int = Field(default=16, ge=2, le=256, description="distinct weights per layer, at most")
    learning_rate: float = Field(default=3e-4, gt=0, description="the highest; it rises, then falls to zero")

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        from pareflow.model.weight_sharing.codebook import bake, share

        network = copy.deepcopy(network)
        fold_batch_norms(network, workload)
        chosen = _matrices(network, self.clusters)
        for layer, name in chosen:
            share(layer, name, self.clusters)
        fit(network, workload, self, loss=task_loss(workload))
        for layer, name in chosen:
            bake(layer, name)
        return network


def _matrices(network: "nn.Module", clusters: int) -> "list[tuple[nn.Module, str]]":
    """The layer and the name of each parameter with two axes or more, and more values than clusters.

    Raises: UnsuitableError where there is none, or where two layers hold one parameter.
    """
    named = dict(network.named_parameters(remove_duplicate=False))
    large = [path for path, p in named.items() if p.dim() >= 2 and len(np.unique(p.detach())) > clusters]
    if not large:
        raise UnsuitableError(
            f"some layer must have more than clusters={clusters} distinct weights",
            f"none of {', '.join(named) or 'no parameters'} has",
            "Ask for fewer clusters",
        )
    places = {
        (network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]): path for path in large
    }
    owners: dict[int, str] = {}
    for path in places.values():
        other = owners.setdefault(id(named[path]), path)
        if other != path:
            raise UnsuitableError(
                "every layer must have weights of its own, or be shared as a whole",
                f"`{path}` and `{other}` hold one parameter",
                "Untie them, or leave the technique out",
            )
    return list(places)
