"""Fewer weights, channels, heads and layers. One line per member."""

from pareflow.model.pruning.channels import ChannelPruning
from pareflow.model.pruning.heads import HeadPruning
from pareflow.model.pruning.layers import LayerPruning
from pareflow.model.pruning.lottery_ticket import LotteryTicket
from pareflow.model.pruning.n_m import NMPruning
from pareflow.model.pruning.unstructured import UnstructuredPruning

__all__ = [
    "ChannelPruning",
    "HeadPruning",
    "LayerPruning",
    "LotteryTicket",
    "NMPruning",
    "UnstructuredPruning",
]
