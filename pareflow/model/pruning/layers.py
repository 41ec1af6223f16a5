"""Whole blocks of a network, such as the layers of a transformer."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.pruning.dependencies import check_runs
from pareflow.model.pruning.saliency import batches, repair, saliencies
from pareflow.model.training import TrainedTechnique, task_loss
from pareflow.network import Form, run_torch
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn

AT_ONCE = 64
"""Samples per forward pass."""


@dataclass(frozen=True)
class Block:
    """One of several modules of a class in a list, which gives the shape that it takes."""

    container: str
    index: int
    key: str
    """Its name in the list: its index, unless the list's maker named its modules."""

    @property
    def name(self) -> str:
        return f"{self.container}.{self.key}".lstrip(".")

    def drop(self, network: "nn.Module") -> None:
        """Take it out, in place; a transformers config that counts the list's blocks says so."""
        from torch import nn

        container: Any = network.get_submodule(self.container)
        for owner in self._owners(network):
            config: Any = getattr(owner, "config", None)
            if getattr(config, "num_hidden_layers", None) == len(container):
                config.num_hidden_layers = len(container) - 1
        if isinstance(container, nn.Sequential):
            del container._modules[self.key]  # `del container[…]` would number the others anew
        else:
            del container[self.index]

    def _owners(self, network: "nn.Module") -> "list[nn.Module]":
        """The modules that the list lies in, and itself: others may be part of another network too."""
        parents = [network]
        for key in filter(None, self.container.split(".")):
            parents.append(parents[-1].get_submodule(key))
        return parents


class LayerPruning(TrainedTechnique):
    """Drop the blocks that are worth least: a network with fewer layers.

    Blocks are modules of one class in a ModuleList or Sequential that give the shape they take. They go one
    by one, each time the one that costs least, scores taken afresh. At least one goes, and one of each class
    stays in its list.
    Source: Kim et al., 2024, arXiv:2402.02834, section 3 (a block's importance by magnitude, by Taylor, or by
    the loss without it). Departures: the loss is the task's own; scores are taken again after each block.
    """

    name: ClassVar[str] = "layer_pruning"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")
    taking: ClassVar[tuple[str, ...]] = ("ratio",)

    ratio: float = Field(default=0.5, gt=0, lt=1, description="share of the blocks that go, rounded down")
    importance: Literal["loss", "magnitude", "taylor", "fisher"] = Field(
        default="loss",
        description="what is worth least: by the loss without it, by size, by first or second order",
    )
    samples: int = Field(default=128, ge=1, description="calibration samples that it is scored on")

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        pruned = copy.deepcopy(network).eval()
        for _ in range(self._count(pruned, workload)):
            scores = self._scores(pruned, workload)
            min(scores, key=lambda block: scores[block]).drop(pruned)
        check_runs(pruned, network, workload)
        return repair(pruned, workload, self)

    def takes(self, network: "nn.Module", workload: LoadedWorkload) -> int:
        """How many blocks go."""
        return self._count(copy.deepcopy(network).eval(), workload)

    def _count(self, network: "nn.Module", workload: LoadedWorkload) -> int:
        return max(1, int(self.ratio * len(blocks(network, workload))))

    def _scores(self, network: "nn.Module", workload: LoadedWorkload) -> dict[Block, float]:
        found = blocks(network, workload)
        if self.importance == "loss":
            return {block: loss_without(block, network, workload, self.samples) for block in found}
        worth = saliencies(network, workload, self.importance, self.samples)
        return {b: sum(float(worth[n].sum()) for n in worth if n.startswith(f"{b.name}.")) for b in found}


def loss_without(block: Block, network: "nn.Module", workload: LoadedWorkload, samples: int) -> float:
    """The mean loss on calibration samples when the block is gone.

    Raises: WorkloadError without labels, UnsuitableError where the network cannot do without a block.
    """
    import torch

    shorter = copy.deepcopy(network)
    block.drop(shorter)
    check_runs(shorter, network, workload)
    loss, total, count = task_loss(workload), 0.0, 0
    with torch.no_grad():
        for batch in batches(shorter, workload, samples, AT_ONCE):
            total += float(loss(shorter, batch)) * len(batch.indices)
            count += len(batch.indices)
    return total / count


def blocks(network: "nn.Module", workload: LoadedWorkload) -> list[Block]:
    """The blocks that can be dropped. Raises: UnsuitableError where there is none."""
    from torch import nn

    found = [
        Block(name, index, list(container._modules)[index])
        for name, container in network.named_modules()
        if isinstance(container, (nn.ModuleList, nn.Sequential))
        for index in _repeated(container)
    ]
    keeping = _shape_keepers(network, workload)
    droppable = [block for block in found if network.get_submodule(block.name) in keeping]
    if not droppable:
        raise UnsuitableError(
            "a network must have a list with several blocks of one class that keep their input's shape",
            f"`{type(network).__name__}` has none (or none left) among {[b.name for b in found] or 'none'}",
            "Leave `layer_pruning` out, or lower `ratio`",
        )
    return droppable


def _repeated(container: Any) -> list[int]:
    """The positions of composite modules whose class is there more than once."""
    kinds = [type(module) if any(module.children()) else None for module in container]
    counts = Counter(kinds)
    return [i for i, kind in enumerate(kinds) if kind is not None and counts[kind] > 1]


def _shape_keepers(network: "nn.Module", workload: LoadedWorkload) -> "set[nn.Module]":
    """The modules whose first tensor out has the shape of their first tensor in, on two real samples."""
    kept = set[Any]()

    def look(module: "nn.Module", given: Any, named: Any, out: Any) -> None:
        sizes = [tensor.shape for value in (given, named, out) for tensor in islice(_tensors(value), 1)]
        if len(sizes) > 1 and sizes[0] == sizes[-1]:
            kept.add(module)

    handles = [m.register_forward_hook(look, with_kwargs=True) for m in network.modules()]
    run_torch(network, workload.example(batch_size=2))
    for handle in handles:
        handle.remove()
    return kept


def _tensors(value: Any) -> "Iterator[torch.Tensor]":
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
