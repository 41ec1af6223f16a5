"""How much of a matrix each rank keeps, and which rank each layer gets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pareflow.errors import UnsuitableError


@dataclass(frozen=True)
class Spectrum:
    """The squared singular values of a layer's matrix of shape (rows, columns), falling, their sum 1."""

    name: str
    energies: np.ndarray
    rows: int
    columns: int
    uses: float = 1.0
    """How often one sample goes through the matrix; 1 where parameters count."""

    @property
    def dense(self) -> float:
        """The cost of the matrix as it is."""
        return self.rows * self.columns * self.uses

    @property
    def step(self) -> float:
        """The cost of one more rank."""
        return (self.rows + self.columns) * self.uses

    @property
    def largest(self) -> int:
        """The highest rank at which two factors are smaller than the matrix; 0 where there is none."""
        return (self.rows * self.columns - 1) // (self.rows + self.columns)

    def cost(self, rank: int) -> float:
        """The cost at this rank; a matrix whose factors would be no smaller stays whole."""
        return rank * self.step if rank <= self.largest else self.dense

    def rank_for(self, energy: float) -> int:
        """The lowest rank that keeps this share of the energy."""
        return min(int(np.searchsorted(np.cumsum(self.energies), energy)) + 1, len(self.energies))


def ranks_by_energy(spectra: Sequence[Spectrum], energy: float) -> dict[str, int]:
    """Per layer that shrinks, the lowest rank that keeps this share of its energy.

    Raises: UnsuitableError where no layer shrinks.
    """
    chosen = _shrinking(spectra, [spectrum.rank_for(energy) for spectrum in spectra])
    if not chosen:
        most = [float(s.energies[: s.largest].sum()) for s in spectra]
        nearest = spectra[int(np.argmax(most))].name
        raise UnsuitableError(
            "at least one layer must shrink when it is split",
            f"none does if each keeps {energy:g} of its energy; `{nearest}` is nearest",
            f"Set `share` to {np.floor(1000 * max(most)) / 1000:g} or less",
        )
    return chosen


def ranks_by_budget(spectra: Sequence[Spectrum], share: float) -> dict[str, int]:
    """Per layer that shrinks, its rank: together they cost at most this share of what they cost now.

    Ranks are bought greedily, those first that keep the most energy for their cost; each layer has one at
    least. Raises: UnsuitableError where the share is too small for that.
    """
    layers = np.repeat(np.arange(len(spectra)), [len(s.energies) for s in spectra])
    gains = np.concatenate([s.energies / s.step for s in spectra])
    order = layers[np.argsort(-gains, kind="stable")]
    bought = np.maximum(1, np.cumsum(np.eye(len(spectra), dtype=int)[order], axis=0))
    costs = np.sum(
        [[s.cost(rank) for rank in ranks] for s, ranks in zip(spectra, bought.T, strict=True)], axis=0
    )
    whole = sum(s.dense for s in spectra)
    affordable = int(np.searchsorted(costs, share * whole, side="right"))
    if not affordable:
        raise UnsuitableError(
            "every layer must keep one rank at least",
            f"that costs {costs[0] / whole:.4f} of what the layers cost now, and `share` is {share:g}",
            f"Set `share` to {np.ceil(1000 * costs[0] / whole) / 1000:g} or more",
        )
    return _shrinking(spectra, bought[affordable - 1].tolist())


def _shrinking(spectra: Sequence[Spectrum], ranks: Sequence[int]) -> dict[str, int]:
    """The layers whose factors are smaller, and their ranks."""
    return {s.name: rank for s, rank in zip(spectra, ranks, strict=True) if rank <= s.largest}
