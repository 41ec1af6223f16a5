"""Level 3: policies, which decide how requests meet a session. One line per member."""

from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.caching import EmbeddingCache, ExactCache, SemanticCache
from pareflow.runtime.cascade import ConfidenceCascade
from pareflow.runtime.complexity_routing import ComplexityRouting
from pareflow.runtime.decoding import Decoding, Generation
from pareflow.runtime.policy import Policy
from pareflow.runtime.ranking import RankingCascade
from pareflow.runtime.routing import DeadlineRouting

__all__ = [
    "ComplexityRouting",
    "ConfidenceCascade",
    "DeadlineRouting",
    "Decoding",
    "DynamicBatching",
    "EmbeddingCache",
    "ExactCache",
    "Generation",
    "Policy",
    "RankingCascade",
    "SemanticCache",
]
