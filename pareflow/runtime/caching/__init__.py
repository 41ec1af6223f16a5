"""Caches of results. One line per member."""

from pareflow.runtime.caching.exact import CachedSession, ExactCache

__all__ = ["CachedSession", "ExactCache"]
