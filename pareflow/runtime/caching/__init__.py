"""Caches of results. One line per member."""

from pareflow.runtime.caching.embedding_cache import EmbeddingCache
from pareflow.runtime.caching.exact_cache import ExactCache
from pareflow.runtime.caching.semantic_cache import SemanticCache

__all__ = ["EmbeddingCache", "ExactCache", "SemanticCache"]
