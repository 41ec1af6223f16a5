"""Texts to token ids, with the `tokenizers` library alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.errors import WorkloadError
from pareflow.huggingface.hub import missing
from pareflow.workload import Arrays, Samples

FILES = ("tokenizer.json", "tokenizer_config.json")
_UNLIMITED = 10**6
"""transformers writes 10**30 as the `model_max_length` of a tokenizer that knows no limit."""

_POSITIONS_AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Model types whose tokens are counted from `pad_token_id` + 1 on, so that they take fewer than they have
positions. Source: transformers, `create_position_ids_from_input_ids` in their modules."""

_ROTARY = {"rope_theta", "rope_parameters", "global_rope_theta"}
"""What config.json holds where positions are computed, and not looked up."""


class TextEncoder:
    """What a checkpoint's tokenizer makes of texts: (batch, sequence) int64 arrays.

    Padded to the longest text of the batch or to `pad_to_length`, cut at `max_length` tokens or at what the
    checkpoint takes.
    """

    def __init__(self, folder: Path, max_length: int | None, pad_to_length: int | None) -> None:
        config = read_json(folder / "config.json")
        settings = read_json(folder / "tokenizer_config.json")
        limits = (max_length or longest(folder), pad_to_length)
        self.max_length = min(limit for limit in limits if limit is not None)
        self.takes_token_types = (config.get("type_vocab_size") or 0) > 1
        self._tokenizer = _tokenizer(folder)
        pad_token = _content(settings.get("pad_token")) or "[PAD]"
        pad_id = config.get("pad_token_id")
        if pad_id is None:
            pad_id = self._tokenizer.token_to_id(pad_token) or 0
        self._tokenizer.enable_truncation(self.max_length, direction=settings.get("truncation_side", "right"))
        self._tokenizer.enable_padding(
            direction=settings.get("padding_side", "right"),
            pad_id=pad_id,
            pad_token=pad_token,
            length=pad_to_length,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The network's inputs, in order."""
        return ("input_ids", "attention_mask", *(("token_type_ids",) if self.takes_token_types else ()))

    def __call__(self, texts: Samples) -> Arrays:
        encodings = self._tokenizer.encode_batch([str(text) for text in texts])
        arrays = {
            "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
        }
        if self.takes_token_types:
            arrays["token_type_ids"] = np.array([e.type_ids for e in encodings], dtype=np.int64)
        return arrays


def _tokenizer(folder: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing("tokenizers") from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise WorkloadError(
            "a text checkpoint must hold its tokenizer as tokenizer.json",
            f"there is none in {folder}",
            "transformers writes it: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`",
        )
    return Tokenizer.from_file(str(path))


def longest(folder: Path) -> int:
    """How many tokens the checkpoint in a folder takes; 512 where it does not say."""
    config, settings = read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")
    limits = (settings.get("model_max_length"), config.get("max_position_embeddings"), 512)
    said = next(int(limit) for limit in limits if limit and limit < _UNLIMITED)
    return min(said, places(folder) or said)


def places(folder: Path) -> int | None:
    """How many tokens the network in a folder has a learned position for; None where it does not say."""
    config = read_json(folder / "config.json")
    positions = config.get("max_position_embeddings")
    if not positions or config.get("position_biased_input") is False or _ROTARY & config.keys():
        return None
    if config.get("model_type") not in _POSITIONS_AFTER_PADDING:
        return int(positions)
    padding = config.get("pad_token_id")
    return int(positions - 1 - (1 if padding is None else padding))


def _content(token: Any) -> str | None:
    """A special token's text: tokenizer_config.json has it bare, or as `{content: …}`."""
    text: str | None = token["content"] if isinstance(token, dict) else token
    return text


def read_json(path: Path) -> dict[str, Any]:
    """What a file of a checkpoint says; nothing where it is not there."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return document
