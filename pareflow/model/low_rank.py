"""Weights as products of two thin matrices."""

import copy
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pareflow.errors import UnsuitableError
from pareflow.model.spectrum import Spectrum, ranks_by_budget, ranks_by_energy
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn

    from pareflow.model.factorization import Inputs, Split


class LowRank(TrainedTechnique):
    """Two thin layers in place of each that shrinks by it, then fine-tuning.

    Linear layers, those of attention too, become inputs → rank → outputs; k×k convolutions `rank` filters of
    k×k, then 1×1. Source: Zhang et al., 2015, arXiv:1505.06798, section 3.1 (about the mean of the responses)
    and 3.3 (ranks bought greedily over all layers); activation-aware: Wang et al., 2024, arXiv:2403.07378,
    section 3.1 (SVD-LLM). Departures: a ridge on the covariance; energies are shares of each layer's own.
    """

    name: ClassVar[str] = "low_rank"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    share: float = Field(default=0.5, gt=0, lt=1, description="of what is kept, as `of` says")
    of: Literal["parameters", "products", "energy"] = Field(
        default="parameters",
        description="of all split layers' parameters or multiplications, or of each layer's energy",
    )
    activation_aware: bool = Field(
        default=True, description="keep what the layers give on calibration samples, not their weights"
    )
    embeddings: bool = Field(default=False, description="split embedding tables too")
    samples: int = Field(default=128, ge=1, description="how many calibration samples are looked at")

    @model_validator(mode="after")
    def _embeddings_multiply_nothing(self) -> Self:
        if self.embeddings and self.of == "products":
            raise ValueError(
                "`of: products` must go without `embeddings`, since a look-up multiplies nothing"
            )
        return self

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        from pareflow.model.factorization import Split, layers, replace, watch

        made = copy.deepcopy(network)
        found = layers(made, embeddings=self.embeddings)
        inputs = watch(made, found, workload, self.samples)
        splits = {
            name: Split(name, found[name], seen if self.activation_aware else None)
            for name, seen in inputs.items()
        }
        ranks = self._ranks(splits, inputs)
        replace(made, {id(found[name]): splits[name].layers(rank) for name, rank in ranks.items()})
        return fit(made, workload, self, loss=task_loss(workload)) if self.epochs else made.eval()

    def _ranks(self, splits: "dict[str, Split]", inputs: "dict[str, Inputs]") -> dict[str, int]:
        """The rank of each layer that shrinks. Raises: UnsuitableError."""
        spectra = [
            Spectrum(name, split.energies, *split.shape, inputs[name].rows if self.of == "products" else 1.0)
            for name, split in splits.items()
        ]
        shrinkable = [spectrum for spectrum in spectra if spectrum.largest]
        if not shrinkable:
            raise UnsuitableError(
                "low rank needs a Linear or Conv2d layer that two thin ones can be smaller than",
                f"none of the network's {len(spectra)} is such",
                "Leave this technique out",
            )
        choose = ranks_by_energy if self.of == "energy" else ranks_by_budget
        return choose(shrinkable, self.share)
