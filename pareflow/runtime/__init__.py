"""Level 3: policies, which decide how requests meet a session. One line per member."""

from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.caching import EmbeddingCache, ExactCache, SemanticCache
from pareflow.runtime.policy import Policy

__all__ = ["DynamicBatching", "EmbeddingCache", "ExactCache", "Policy", "SemanticCache"]
