"""The evolution of subnets under a limit of measured latency."""

from dataclasses import dataclass
from typing import Generic

import numpy as np
import optuna
import torch
from torch import nn

from pareflow.errors import UnsuitableError
from pareflow.model.architecture.latency import Latencies
from pareflow.model.architecture.space import A
from pareflow.model.architecture.supernet import Supernet, recalibrated
from pareflow.workload import LoadedWorkload

UNSEEN = 1e6
"""The loss of what is too slow: it is not evaluated."""

AT_ONCE = 64
"""Samples per forward pass."""


@dataclass(frozen=True)
class Evolution(Generic[A]):
    """Subnets of a trained supernet, by NSGA-II: latency and loss fall, and the latency has a limit.

    Source: Deb et al., 2002 (NSGA-II), by Optuna.
    """

    supernet: Supernet[A]
    latencies: Latencies
    workload: LoadedWorkload
    max_latency_share: float
    trials: int
    samples: int
    seed: int

    def best(self) -> A:
        """The architecture within the limit that loses least. Raises: UnsuitableError if none is."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = self.supernet.space
        seen: dict[A, tuple[float, float]] = {}

        def tried(trial: optuna.Trial) -> tuple[float, float]:
            architecture = space.choose(trial.suggest_categorical)
            if architecture not in seen:
                seen[architecture] = self._judged(architecture)
            trial.set_constraint("latency", seen[architecture][0] - self.max_latency_share)
            return seen[architecture]

        population = max(2, min(50, self.trials // 4))
        sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=self.seed)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for end in (0, -1):
            study.enqueue_trial(space.options(end))
        study.optimize(tried, n_trials=self.trials)
        return self._chosen(seen)

    def _judged(self, architecture: A) -> tuple[float, float]:
        """Its share of the latency, and its loss on the search split if it is fast enough."""
        subnet = self.supernet.subnet(architecture)
        share = self.latencies.share(architecture.label, subnet)
        if share > self.max_latency_share:
            return share, UNSEEN
        return share, mean_loss(recalibrated(subnet, self.workload), self.workload, self.samples)

    def _chosen(self, seen: dict[A, tuple[float, float]]) -> A:
        within = {name: loss for name, (share, loss) in seen.items() if share <= self.max_latency_share}
        if not within:
            fastest = min(seen, key=lambda architecture: seen[architecture])
            raise UnsuitableError(
                f"some subnet must take at most max_latency_share={self.max_latency_share} of the latency",
                f"the fastest found, {fastest.label}, takes {seen[fastest][0]}",
                "Allow more; for `blocks` of images, lower `width`",
            )
        return min(within, key=lambda architecture: within[architecture])


def mean_loss(network: nn.Module, workload: LoadedWorkload, samples: int) -> float:
    """The workload's loss on the first samples of the search split."""
    split, total = workload.split("search"), 0.0
    count = min(samples, len(split))
    for start in range(0, count, AT_ONCE):
        part = split.take(np.arange(start, min(start + AT_ONCE, count)))
        inputs = map(torch.from_numpy, workload.definition.preprocess(part.samples).values())
        with torch.no_grad():
            loss = workload.definition.loss(network(*inputs), torch.from_numpy(part.labels()))
        total += float(loss) * len(part)
    return total / count
