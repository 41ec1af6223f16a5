"""Which candidates are tried, in which order, and when to stop. Stages ask it, and tell it what came."""

from pareflow.search.search import Ended, Search, Wave, Waves
from pareflow.search.space import Circumstances
from pareflow.search.trial import Trial

__all__ = ["Circumstances", "Ended", "Search", "Trial", "Wave", "Waves"]
