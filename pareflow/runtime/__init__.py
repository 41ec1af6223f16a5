"""Level 3: policies, which decide how requests meet a session. One line per member."""

from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.caching import EmbeddingCache, ExactCache, SemanticCache
from pareflow.runtime.decoding import Decoding, Generation
from pareflow.runtime.policy import Policy

__all__ = [
    "Decoding",
    "DynamicBatching",
    "EmbeddingCache",
    "ExactCache",
    "Generation",
    "Policy",
    "SemanticCache",
]
