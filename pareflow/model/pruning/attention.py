"""Attention with several heads, as networks of many makes write it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)
COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
TOTALS = ("all_head_size", "embed_dim", "inner_dim", "dim")
"""What modules call their layers, their number of heads, and the number of heads times their size."""


@dataclass(frozen=True)
class Attention:
    """A module with one linear layer each for queries, keys and values, and a number of heads.

    `layers` are the names of the three in the network.
    """

    name: str
    module: Any
    layers: tuple[str, ...]
    count: str
    heads: int
    head_size: int

    def channels(self, heads: list[int]) -> list[int]:
        """The outputs of each projection that belong to these heads."""
        return [head * self.head_size + i for head in sorted(heads) for i in range(self.head_size)]

    def say(self, heads: int) -> None:
        """Let the module's own numbers say how many heads it has."""
        former = self.heads * self.head_size
        for name in TOTALS:
            if getattr(self.module, name, None) == former:
                setattr(self.module, name, heads * self.head_size)
        setattr(self.module, self.count, heads)


def attentions(network: "nn.Module") -> list[Attention]:
    """Every attention whose queries, keys and values have linear layers of one width, in heads."""
    return [found for name, module in network.named_modules() for found in _attention(name, module)]


def _attention(name: str, module: Any) -> list[Attention]:
    from torch import nn

    count = next((c for c in COUNTS if isinstance(getattr(module, c, None), int)), None)
    for projections in PROJECTIONS:
        linear = [getattr(module, p, None) for p in projections]
        if count and all(isinstance(layer, nn.Linear) for layer in linear):
            sizes = {layer.out_features for layer in linear if layer is not None}
            heads = int(getattr(module, count))
            if len(sizes) == 1:
                layers = tuple(f"{name}.{p}".lstrip(".") for p in projections)
                return [Attention(name, module, layers, count, heads, sizes.pop() // heads)]
    return []
