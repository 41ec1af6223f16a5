"""Level 1: techniques, which change the network. One line per member."""

from pareflow.model.architecture_search import ArchitectureSearch
from pareflow.model.attention_fusion import AttentionFusion
from pareflow.model.distillation.born_again import BornAgain
from pareflow.model.distillation.distillation import Distillation
from pareflow.model.distillation.early_exit import EarlyExit
from pareflow.model.given import Given
from pareflow.model.low_rank import LowRank
from pareflow.model.pruning.channels import ChannelPruning
from pareflow.model.pruning.heads import HeadPruning
from pareflow.model.pruning.layers import LayerPruning
from pareflow.model.pruning.lottery_ticket import LotteryTicket
from pareflow.model.pruning.n_m import NMPruning
from pareflow.model.pruning.unstructured import UnstructuredPruning
from pareflow.model.quantization.bf16 import Bf16
from pareflow.model.quantization.binary import Binary
from pareflow.model.quantization.dynamic_int8 import DynamicInt8
from pareflow.model.quantization.fp8 import Fp8
from pareflow.model.quantization.fp16 import Fp16
from pareflow.model.quantization.int4 import Int4
from pareflow.model.quantization.mixed_int8 import MixedInt8
from pareflow.model.quantization.nncf_int4 import NncfInt4
from pareflow.model.quantization.nncf_int8 import NncfInt8
from pareflow.model.quantization.qat_int8 import QatInt8
from pareflow.model.quantization.static_int8 import StaticInt8
from pareflow.model.simplification import Simplification
from pareflow.model.technique import Technique
from pareflow.model.weight_sharing.hashed_sharing import HashedSharing
from pareflow.model.weight_sharing.kmeans_sharing import KmeansSharing
from pareflow.model.weight_sharing.layer_sharing import LayerSharing

__all__ = [
    "ArchitectureSearch",
    "AttentionFusion",
    "Bf16",
    "Binary",
    "BornAgain",
    "ChannelPruning",
    "Distillation",
    "DynamicInt8",
    "EarlyExit",
    "Fp8",
    "Fp16",
    "Given",
    "HashedSharing",
    "HeadPruning",
    "Int4",
    "KmeansSharing",
    "LayerPruning",
    "LayerSharing",
    "LotteryTicket",
    "LowRank",
    "MixedInt8",
    "NMPruning",
    "NncfInt4",
    "NncfInt8",
    "QatInt8",
    "Simplification",
    "StaticInt8",
    "Technique",
    "UnstructuredPruning",
]
