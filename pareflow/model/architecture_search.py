"""Another network for the same task, found by search on measured latency."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.architecture.latency import Latencies
from pareflow.model.architecture.space import Architecture, Family, Space
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import optuna
    from torch import nn

    from pareflow.model.architecture.supernet import Supernet

UNSEEN = 1e6
"""The loss of what is too slow: it is not evaluated."""


class ArchitectureSearch(TrainedTechnique):
    """Put the best network of a family that takes at most a share of the given one's time in its place.

    A supernet that holds every network of the family is trained once; subnets of it evolve (NSGA-II), each
    timed in ONNX Runtime next to the given network; the best within the limit is trained on. It takes images;
    other networks are refused.
    Source: Cai et al., 2020, arXiv:1908.09791; Yu and Huang, 2019, arXiv:1903.05134 (sandwich rule, inplace
    distillation); Deb et al., 2002 (NSGA-II), by Optuna. Departures: latency is measured, not looked up; the
    limit is a constraint of the evolution.
    """

    name: ClassVar[str] = "architecture_search"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate", "optuna", "onnxruntime")
    measures: ClassVar[bool] = True

    blocks: Family = Field(default="mobilenet", description="the family whose blocks the network is made of")
    max_latency_share: float = Field(gt=0, description="of the given network's latency", examples=[100.0])
    epochs: int = Field(ge=0, description="passes of the supernet, and again of the chosen one", examples=[1])
    trials: int = Field(ge=2, description="subnets that are tried; dozens, for good ones", examples=[2])
    width: int | None = Field(
        default=None,
        ge=8,
        description="channels of the largest network's first stage; None: of the given network's first layer",
    )
    samples: int = Field(default=500, ge=1, description="of the search split, that subnets are compared on")
    threads: int = Field(default=1, ge=1, description="of the runtime that subnets are timed in")

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        import torch

        from pareflow.model.architecture.supernet import Sandwich, Supernet

        space = _space(network.eval(), workload, self.blocks, self.width)
        torch.manual_seed(workload.definition.seed)
        supernet = Supernet(space)
        fit(supernet, workload, self, loss=Sandwich(workload, space), stage="supernet", keep="last")
        latencies = Latencies(network, workload, self.threads)
        chosen = self._evolve(supernet, latencies, workload)
        print(f"chosen: {chosen.label}, {latencies.known[chosen.label]} of the latency", flush=True)
        subnet = supernet.subnet(chosen, workload)
        return fit(subnet, workload, self, loss=task_loss(workload), stage="subnet")

    def _evolve(self, supernet: "Supernet", latencies: Latencies, workload: LoadedWorkload) -> Architecture:
        """The architecture within the limit that loses least. Raises: UnsuitableError if none is."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seen: dict[Architecture, tuple[float, float]] = {}

        def tried(trial: "optuna.Trial") -> tuple[float, float]:
            architecture = supernet.space.choose(trial.suggest_categorical)
            if architecture not in seen:
                seen[architecture] = self._judged(architecture, supernet, latencies, workload)
            trial.set_constraint("latency", seen[architecture][0] - self.max_latency_share)
            return seen[architecture]

        sampler = optuna.samplers.NSGAIISampler(
            population_size=max(2, min(50, self.trials // 4)), seed=workload.definition.seed
        )
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for end in (0, -1):
            study.enqueue_trial(_choices(supernet.space, end))
        study.optimize(tried, n_trials=self.trials)
        return self._best(seen)

    def _judged(
        self, architecture: Architecture, supernet: "Supernet", latencies: Latencies, workload: LoadedWorkload
    ) -> tuple[float, float]:
        """Its share of the latency, and its loss on samples of the search split if it is fast enough."""
        from pareflow.model.architecture.subnet import Subnet

        share = latencies.share(architecture.label, lambda: Subnet(architecture))
        if share > self.max_latency_share:
            return share, UNSEEN
        return share, _loss(supernet.subnet(architecture, workload), workload, self.samples)

    def _best(self, seen: dict[Architecture, tuple[float, float]]) -> Architecture:
        within = {name: loss for name, (share, loss) in seen.items() if share <= self.max_latency_share}
        if not within:
            fastest = min(seen, key=lambda architecture: seen[architecture])
            raise UnsuitableError(
                f"some subnet must take at most max_latency_share={self.max_latency_share} of the latency",
                f"the fastest found, {fastest.label}, takes {seen[fastest][0]}",
                "Allow more, or lower `width`",
            )
        return min(within, key=lambda architecture: within[architecture])


def _choices(space: Space, end: int) -> dict[str, Any]:
    """The choices, by name, of the space's smallest (0) or largest (-1) network."""
    made: dict[str, Any] = {}
    space.choose(lambda name, options: made.setdefault(name, options[end]))
    return made


def _space(network: "nn.Module", workload: LoadedWorkload, family: Family, width: int | None) -> Space:
    """Raises: UnsuitableError unless the network takes one batch of images and gives logits of classes."""
    import torch
    from torch import nn

    feeds = workload.example(2)
    shapes = {name: array.shape for name, array in feeds.items()}
    targets = workload.split("train").labels()
    with torch.no_grad():
        given = network(*map(torch.from_numpy, feeds.values()))
    images = [shape for shape in shapes.values() if len(shape) == 4]
    logits = isinstance(given, torch.Tensor) and given.dim() == 2
    if len(shapes) != 1 or not images or not logits or not np.issubdtype(targets.dtype, np.integer):
        raise UnsuitableError(
            "the network must take one batch of images (samples, channels, height, width), and give one "
            "tensor of logits (samples, classes), and targets must be integers",
            f"it takes {shapes} and gives {type(given).__name__}, and targets are {targets.dtype}",
            "Leave the technique out",
        )
    _, channels, *pixels = images[0]
    first = next((layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)), 32)
    return Space(family, channels, min(pixels), given.shape[1], width or first)


def _loss(network: "nn.Module", workload: LoadedWorkload, samples: int) -> float:
    """The workload's loss on the first samples of the search split."""
    import torch

    part = workload.split("search").take(np.arange(min(samples, len(workload.split("search")))))
    inputs = map(torch.from_numpy, workload.definition.preprocess(part.samples).values())
    with torch.no_grad():
        return float(workload.definition.loss(network(*inputs), torch.from_numpy(part.labels())))
