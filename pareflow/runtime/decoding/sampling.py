"""Sampling by noise that is fixed by seed and place: the same tokens, however they were arrived at."""

from typing import TYPE_CHECKING

import numpy as np

from pareflow.runtime.decoding.drafts import Process
from pareflow.runtime.decoding.request import Prompt

if TYPE_CHECKING:
    import torch


def chosen_by(prompt: Prompt) -> "list[Process]":
    """What makes scores of logits, one after the other; nothing where the likeliest token is wanted.

    What `top_k` and `top_p` leave out has a score of minus infinity, whatever its noise: the sample is exact
    for what they leave.
    """
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    if not prompt.temperature:
        return []
    found: list[Process] = [lambda _, logits: logits.double() / prompt.temperature]
    if prompt.top_k:
        found.append(TopKLogitsWarper(prompt.top_k))
    if prompt.top_p < 1:
        found.append(TopPLogitsWarper(prompt.top_p))
    return [*found, Noise(prompt.seed)]


class Noise:
    """A logits processor: logits plus Gumbel noise, so that the largest is a sample.

    The largest of `logits + noise` is distributed as the softmax of the logits (Maddison et al., 2014,
    arXiv:1411.0030). The noise of a place in the text depends on the seed and that place alone. A draft that
    is shown the same noise proposes what the target is about to choose, and the target's choice does not
    depend on the draft: sampling with a draft is exact, and gives the very tokens that sampling without one
    gives.

    Source: Daliri, Musco and Suresh, 2024, arXiv:2408.07978, drafter-invariant speculation by Gumbel
    sampling. The rule of Leviathan et al., 2023, arXiv:2211.17192, section 2.3, is exact too and accepts
    somewhat more, but what it answers to a seed depends on the draft, and so on when drafting is left off.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """`scores` (1, vocabulary) for the token behind `input_ids` (1, tokens)."""
        import torch

        place = np.random.Philox(key=self._seed, counter=[0, 0, 0, input_ids.shape[1]])
        noise = torch.from_numpy(np.random.Generator(place).gumbel(size=tuple(scores.shape)))
        return scores + noise.to(scores.device)
