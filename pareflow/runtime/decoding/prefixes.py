"""Keys and values of texts that were decoded, for prompts that begin alike."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pareflow.runtime.caching.accounts import Account

if TYPE_CHECKING:
    from transformers import DynamicCache

WINDOW, REST_S = 10_000, 60.0
"""Tokens of prompts after which gain and cost are compared, and how long it is off after the first loss."""


class PrefixCache:
    """The last texts of one model with their keys and values, the least recently used of which go first.

    It belongs to one loaded model, so that none of another version's is ever found. A text that goes on from
    a kept one takes its place. It is off while it loses: what the tokens that it spares would take, less what
    looking up and keeping do.
    """

    def __init__(
        self,
        max_bytes: int,
        account: Account | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from cachetools import LRUCache

        self._kept: LRUCache[bytes, DynamicCache] = LRUCache(max_bytes, getsizeof=_bytes)
        self._account, self._clock = account or Account(WINDOW, REST_S), clock
        self._on = True
        self._hits = self._misses = self._reused_tokens = 0

    @property
    def held_bytes(self) -> int:
        return int(self._kept.currsize)

    def longest(self, tokens: np.ndarray) -> "DynamicCache":
        """Keys and values of the longest kept beginning of a prompt, which the caller may go on from.

        It ends before the last token at the latest, since that one's logits are what decoding begins with.
        While it is off there are none.
        """
        from transformers import DynamicCache

        self._on = self._account.on()
        if not self._on:
            return DynamicCache()
        began = self._clock()
        found = self._longest(tokens)
        reused = found.get_seq_length()
        self._hits += reused > 0
        self._misses += reused == 0
        self._reused_tokens += reused
        self._account.looked_up(reused, len(tokens) - reused, self._clock() - began)
        return found

    def computed(self, tokens: int, seconds: float) -> None:
        """So many tokens of a prompt, most of which was not kept, took so long."""
        self._account.computed(tokens, seconds)

    def keep(self, tokens: np.ndarray, past: "DynamicCache") -> None:
        """Take in what was computed for a text, unless it was off then; what never fits is not taken."""
        if self._on:
            began = self._clock()
            self._keep(tokens, past)
            self._account.paid(self._clock() - began)

    def figures(self) -> Mapping[str, float]:
        """Requests, and tokens that were met again; bytes; what it gains and costs, and whether it is on."""
        account = self._account.figures()
        told = ("skipped", "saved_ms", "cost_ms", "net_ms", "on", "times_off")
        return {
            "hits": self._hits,
            "misses": self._misses,
            "tokens": self._reused_tokens,
            "bytes": self.held_bytes,
            **{name: account[name] for name in told},
        }

    def _longest(self, tokens: np.ndarray) -> "DynamicCache":
        from transformers import DynamicCache

        common = {key: _common(np.frombuffer(key, np.int64), tokens[:-1]) for key in self._kept}
        best = max(common, key=lambda key: common[key], default=b"")
        size = common.get(best, 0)
        if not size:
            return DynamicCache()
        return DynamicCache(
            [(x.keys[..., :size, :], x.values[..., :size, :]) for x in self._kept[best].layers]
        )

    def _keep(self, tokens: np.ndarray, past: "DynamicCache") -> None:
        key = tokens[: past.get_seq_length()].astype(np.int64).tobytes()
        if any(kept.startswith(key) for kept in self._kept) or _bytes(past) > self._kept.maxsize:
            return
        for kept in [kept for kept in self._kept if key.startswith(kept)]:
            del self._kept[kept]
        self._kept[key] = past


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two texts begin alike with."""
    size = min(len(a), len(b))
    other = a[:size] != b[:size]
    return int(other.argmax()) if other.any() else size


def _bytes(past: "DynamicCache") -> int:
    """What is really held: a cut tensor holds the whole that it was cut from."""
    tensors = [tensor for layer in past.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
