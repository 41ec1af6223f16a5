"""The texts, for a transformer with heads and repeated blocks: what some techniques work on."""

from typing import TYPE_CHECKING

from .texts import Texts

if TYPE_CHECKING:
    from torch import nn


class EncodedTexts(Texts):
    """The same texts, and a network with more parts."""

    def network(self) -> "nn.Module":
        import torch

        from .networks import TinyEncoder

        torch.manual_seed(self.seed)
        return TinyEncoder()
