"""Keys and values of texts that were decoded, for prompts that begin alike."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import DynamicCache


class PrefixCache:
    """The last texts of one model with their keys and values, the least recently used of which go first.

    It belongs to one loaded model, so that none of another version's is ever found. A text that goes on from
    a kept one takes its place.
    """

    def __init__(self, max_bytes: int) -> None:
        from cachetools import LRUCache

        self._kept: LRUCache[bytes, DynamicCache] = LRUCache(max_bytes, getsizeof=_bytes)
        self.hits, self.misses, self.reused_tokens = 0, 0, 0

    @property
    def held_bytes(self) -> int:
        return int(self._kept.currsize)

    def longest(self, tokens: np.ndarray) -> "DynamicCache":
        """Keys and values of the longest kept beginning of a prompt, which the caller may go on from.

        It ends before the last token at the latest, since that one's logits are what decoding begins with.
        """
        from transformers import DynamicCache

        common = {key: _common(np.frombuffer(key, np.int64), tokens[:-1]) for key in self._kept}
        best = max(common, key=lambda key: common[key], default=b"")
        if not common.get(best):
            self.misses += 1
            return DynamicCache()
        self.hits += 1
        self.reused_tokens += common[best]
        size = common[best]
        return DynamicCache(
            [(x.keys[..., :size, :], x.values[..., :size, :]) for x in self._kept[best].layers]
        )

    def keep(self, tokens: np.ndarray, past: "DynamicCache") -> None:
        """Take in what was computed for a text; what never fits is not taken."""
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
