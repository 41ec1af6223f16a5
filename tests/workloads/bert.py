"""The texts, for the library's own BERT: what tools that know the field's networks look for."""

from typing import TYPE_CHECKING

from .texts import Texts

if TYPE_CHECKING:
    from torch import nn


class BertTexts(Texts):
    """The same texts, and the network that most are like."""

    def network(self) -> "nn.Module":
        import torch

        from .networks import TinyBert

        torch.manual_seed(self.seed)
        return TinyBert()
