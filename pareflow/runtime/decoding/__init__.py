"""Decoding of causal language models: kept keys and values, prefixes met again, tokens drafted ahead."""

from pareflow.runtime.decoding.generation import Generation
from pareflow.runtime.decoding.listening import heard_by
from pareflow.runtime.decoding.settings import Decoding

__all__ = ["Decoding", "Generation", "heard_by"]
