"""Another network for the same task, found by search on measured latency."""

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pareflow.model.architecture.latency import Latencies
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn

    from pareflow.model.architecture.supernet import Supernet


class ArchitectureSearch(TrainedTechnique):
    """Put the best network of a family that takes at most a share of the given one's time in its place.

    A supernet that holds every network of the family is trained once; subnets of it evolve (NSGA-II), each
    timed in ONNX Runtime next to the given network; the best within the limit is trained on. For images, the
    family is made of new blocks. A transformer is the largest of its own: the others have fewer of its heads,
    neurons and layers, the best of them; it starts from its weights, so let `learning_rate` be that of
    fine-tuning. Heads of `nn.MultiheadAttention`, whose projections are fused, all stay.
    Source: Cai et al., 2020, arXiv:1908.09791; Yu and Huang, 2019, arXiv:1903.05134 (sandwich rule, inplace
    distillation); Hou et al., 2020, arXiv:2004.04037, and Wang et al., 2020, arXiv:2005.14187 (transformers);
    Deb et al., 2002 (NSGA-II), by Optuna. Departures: latency is measured, not looked up; the limit is a
    constraint of the evolution.
    """

    name: ClassVar[str] = "architecture_search"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate", "optuna", "onnxruntime", "torch-pruning")
    measures: ClassVar[bool] = True

    blocks: Literal["auto", "resnet", "mobilenet", "efficientnet", "transformer"] = Field(
        default="auto",
        description="the family: of blocks for images, or the given transformer's own parts; auto: these, "
        "where it is one, else mobilenet",
    )
    max_latency_share: float = Field(gt=0, description="of the given network's latency", examples=[100.0])
    epochs: int = Field(ge=0, description="passes of the supernet, and again of the chosen one", examples=[1])
    trials: int = Field(ge=2, description="subnets that are tried; dozens, for good ones", examples=[2])
    width: int | None = Field(
        default=None,
        ge=8,
        description="channels of the first stage of the largest network for images; None: of the given "
        "network's first layer",
    )
    samples: int = Field(default=500, ge=1, description="of the search split, that subnets are compared on")
    threads: int = Field(default=1, ge=1, description="of the runtime that subnets are timed in")

    @property
    def passes(self) -> int:
        """Of the supernet and of the chosen one."""
        return 2 * self.epochs

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        import torch

        from pareflow.model.architecture.evolution import Evolution
        from pareflow.model.architecture.supernet import Sandwich, recalibrated

        given = copy.deepcopy(network).eval()
        torch.manual_seed(self.seed_of(workload))
        supernet = self._supernet(given, workload)
        loss = Sandwich(workload, supernet.space)
        fit(supernet, workload, self, loss=loss, stage="supernet", keep="last")
        latencies = Latencies(given, workload, self.threads)
        limits = (self.max_latency_share, self.trials, self.samples, self.seed_of(workload))
        chosen = Evolution(supernet, latencies, workload, *limits).best()
        subnet = supernet.subnet(chosen)
        share = latencies.share(chosen.label, subnet)
        print(f"chosen: {chosen.label}, {share:g} of the latency", flush=True)
        return fit(recalibrated(subnet, workload), workload, self, loss=task_loss(workload), stage="subnet")

    def _supernet(self, network: "nn.Module", workload: LoadedWorkload) -> "Supernet[Any]":
        """Of the family that is asked for. Raises: UnsuitableError where the network is not of that kind."""
        from pareflow.model.architecture.image_supernet import image_supernet
        from pareflow.model.architecture.transformer_parts import attending
        from pareflow.model.architecture.transformer_supernet import transformer_supernet

        if self.blocks == "transformer" or (self.blocks == "auto" and attending(network)):
            return transformer_supernet(network, workload)
        family = "mobilenet" if self.blocks == "auto" else self.blocks
        return image_supernet(network, workload, family, self.width)
