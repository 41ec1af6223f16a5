"""Caches of results. One line per member."""

from pareflow.runtime.caching.exact import ExactCache

__all__ = ["ExactCache"]
