"""What a request to a language model asks for, checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pareflow.errors import InputError

OPTIONS = ("attention_mask", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
_LAWS: dict[str, tuple[str, str, int, float]] = {
    "max_new_tokens": ("1 or more", "iu", 1, math.inf),
    "temperature": ("0 or more", "fiu", 0, math.inf),
    "top_k": ("a whole number of 0 or more", "iu", 0, math.inf),
    "top_p": ("from 0 to 1", "fiu", 0, 1),
    "seed": ("a whole number of 0 or more", "iu", 0, math.inf),
}
"""In words, the kinds of type, the least and the most."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model takes: its vocabulary and context, and tokens of an answer where no number is asked."""

    vocabulary: int
    context: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a request. Temperature 0: always the likeliest token.

    Else one is drawn of the `top_k` likeliest (0: of all), of these of the fewest whose share is `top_p`.
    """

    tokens: np.ndarray
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


def prompts(feeds: Mapping[str, np.ndarray], limits: Limits) -> list[Prompt]:
    """The rows of a request. Raises: InputError."""
    if unknown := set(feeds) - {"input_ids", *OPTIONS}:
        raise InputError(
            f"a request holds `input_ids` and may hold {', '.join(OPTIONS)}",
            f"it holds {', '.join(sorted(unknown))}",
            "Leave it out",
        )
    rows = _rows(feeds)
    count = len(rows)
    lengths = _each(feeds, "max_new_tokens", count, 0)
    temperatures, seeds = _each(feeds, "temperature", count, 0.0), _each(feeds, "seed", count, 0)
    tops, shares = _each(feeds, "top_k", count, 0), _each(feeds, "top_p", count, 1.0)
    return [
        Prompt(
            _known(row, limits),
            _length(len(row), int(lengths[at]), limits),
            float(temperatures[at]),
            int(tops[at]),
            float(shares[at]),
            int(seeds[at]),
        )
        for at, row in enumerate(rows)
    ]


def _rows(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The tokens of each row, without those that `attention_mask` masks, on whichever side they are."""
    tokens = np.asarray(feeds.get("input_ids", ()))
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise InputError(
            "`input_ids` must be whole numbers of shape (n, tokens)",
            f"it has {tokens.dtype} of shape {tokens.shape}" if "input_ids" in feeds else "there is none",
            "Give the token numbers of each prompt",
        )
    mask = np.asarray(feeds.get("attention_mask", np.ones(tokens.shape)))
    if mask.shape != tokens.shape:
        raise InputError(
            "`attention_mask` must have the shape of `input_ids`",
            f"it is {mask.shape}, not {tokens.shape}",
            "Give 1 for each token that counts and 0 for what fills a row up",
        )
    return [row[kept != 0].astype(np.int64) for row, kept in zip(tokens, mask, strict=True)]


def _each(feeds: Mapping[str, np.ndarray], name: str, count: int, default: float) -> np.ndarray:
    """One number per row. Raises: InputError."""
    if name not in feeds:
        return np.full(count, default)
    given, (law, kinds, least, most) = np.asarray(feeds[name]), _LAWS[name]
    values = given.reshape(-1)
    fits = len(values) == count and values.dtype.kind in kinds
    if not fits or not (np.isfinite(values) & (values >= least) & (values <= most)).all():
        raise InputError(
            f"`{name}` must be {law} for each of {count} rows",
            f"it is {given.tolist()}",
            "Give one for each row, or leave it out",
        )
    return values


def _known(row: np.ndarray, limits: Limits) -> np.ndarray:
    """Raises: InputError where a token is none of the vocabulary's."""
    strange = row[(row < 0) | (row >= limits.vocabulary)]
    if len(strange):
        raise InputError(
            f"tokens must be numbers from 0 to {limits.vocabulary - 1}",
            f"the prompt holds {strange[0]}",
            "Encode it by the model's own tokenizer",
        )
    return row


def _length(prompt: int, asked: int, limits: Limits) -> int:
    """How many tokens to answer with; fewer than the default where the context ends. Raises: InputError."""
    if not 1 <= prompt < limits.context:
        raise InputError(
            f"a prompt must have from 1 to {limits.context - 1} tokens, which leaves room for an answer",
            f"it has {prompt}",
            "Shorten it" if prompt else "Begin it with the token that starts a text",
        )
    if prompt + asked > limits.context:
        raise InputError(
            f"prompt and answer together must fit the context of {limits.context} tokens",
            f"they are {prompt} + {asked}",
            "Shorten the prompt, or ask for fewer",
        )
    return asked or min(limits.max_new_tokens, limits.context - prompt)
