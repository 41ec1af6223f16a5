"""Level 1: techniques, which change the network. One line per member."""

from pareflow.model.given import Given
from pareflow.model.low_rank import LowRank
from pareflow.model.quantization.dynamic_int8 import DynamicInt8
from pareflow.model.quantization.fp16 import Fp16
from pareflow.model.quantization.nncf_int8 import NncfInt8
from pareflow.model.quantization.static_int8 import StaticInt8
from pareflow.model.technique import Technique
from pareflow.model.weight_sharing.hashed_sharing import HashedSharing
from pareflow.model.weight_sharing.kmeans_sharing import KmeansSharing
from pareflow.model.weight_sharing.layer_sharing import LayerSharing

__all__ = [
    "DynamicInt8",
    "Fp16",
    "Given",
    "HashedSharing",
    "KmeansSharing",
    "LayerSharing",
    "LowRank",
    "NncfInt8",
    "StaticInt8",
    "Technique",
]
