"""Saliency: how much the loss would rise without a weight; and what all pruning techniques share."""

import copy
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.training import Batch, TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn

MINIBATCH = 16
"""Samples per gradient of first order."""

Importance = Literal["magnitude", "taylor", "fisher"]
Share = Annotated[float, Field(ge=0, lt=1)]


class PruningTechnique(TrainedTechnique):
    """A technique that removes what is worth least, and repairs the rest by training."""

    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    importance: Importance = Field(
        default="magnitude",
        description="what is worth least: by size, by first-order (taylor) or second-order (fisher) loss",
    )
    samples: int = Field(default=128, ge=1, description="calibration samples that gradients are taken on")


def saliencies(
    network: "nn.Module", workload: LoadedWorkload, importance: Importance, samples: int
) -> "dict[str, torch.Tensor]":
    """Per parameter, by name: the saliency of each of its numbers, of the parameter's shape.

    magnitude: w². taylor: the mean over minibatches of (g·w)², g being the gradient of the loss. fisher: half
    of w² times the diagonal of the empirical Fisher matrix, the mean over samples of g². The network is in
    evaluation mode for it, and is not changed. Raises: WorkloadError where gradients lack labels.

    Source: Molchanov et al., 2019, arXiv:1906.10771, section 3.1 (taylor); LeCun et al., 1989, Optimal Brain
    Damage, section 2, with Fisher for Hessian as in Theis et al., 2018, arXiv:1801.05787, section 2 (fisher).
    """
    import torch

    if importance == "magnitude":
        return {name: weight.detach().square() for name, weight in network.named_parameters()}
    loss = task_loss(workload)
    probe = copy.deepcopy(network).eval().requires_grad_(True)
    weights = dict(probe.named_parameters())
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    found = list(batches(probe, workload, samples, 1 if importance == "fisher" else MINIBATCH))
    for batch in found:
        gradients = torch.autograd.grad(loss(probe, batch), list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                sums[name] += (gradient * weight.detach()).square()
    scale = (0.5 if importance == "fisher" else 1.0) / len(found)
    return {name: total * scale for name, total in sums.items()}


def batches(network: "nn.Module", workload: LoadedWorkload, samples: int, size: int) -> Iterator[Batch]:
    """The first `samples` of the calibration split in batches, where the network lies."""
    import torch

    split = workload.split("calibration")
    device = next(network.parameters()).device
    for start in range(0, min(samples, len(split)), size):
        indices = np.arange(start, min(start + size, samples, len(split)))
        part = split.take(indices)
        arrays = workload.definition.preprocess(part.samples)
        inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        targets = None if part.targets is None else torch.from_numpy(part.targets).to(device)
        yield Batch("calibration", indices, inputs, targets)


def repair(
    network: "nn.Module",
    workload: LoadedWorkload,
    settings: TrainedTechnique,
    *,
    stage: str = "fit",
    after_step: Callable[[float], None] | None = None,
    keep: Literal["best", "last"] = "best",
) -> "nn.Module":
    """The network fine-tuned in place; with no epochs it stays as it is, and needs no labels."""
    if settings.epochs == 0:
        return network.eval()
    loss = task_loss(workload)
    return fit(network, workload, settings, loss=loss, stage=stage, after_step=after_step, keep=keep)


def shares(names: list[str], default: float, patterns: Mapping[str, float]) -> dict[str, float]:
    """What share each layer loses: that of the last pattern that matches its name, else the default.

    Raises: UnsuitableError where a pattern matches no layer, or where nothing is to be pruned.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnsuitableError(
                "every pattern of `layers` must match a layer that can be pruned",
                f"`{pattern}` matches none of {', '.join(names)}",
                "Mend the pattern",
            )
    found = dict.fromkeys(names, default)
    for pattern, share in patterns.items():
        found |= {name: share for name in names if fnmatchcase(name, pattern)}
    if not any(found.values()):
        raise UnsuitableError(
            "some layer must be pruned", f"`layers` exempts all of {', '.join(names)}", "Exempt fewer"
        )
    return found


def cubic(step: int, steps: int) -> float:
    """The share of the final sparsity after so many steps: fast at first, then slower.

    Source: Zhu and Gupta, 2017, arXiv:1710.01878, section 3, equation 1.
    """
    return 1 - (1 - step / steps) ** 3
