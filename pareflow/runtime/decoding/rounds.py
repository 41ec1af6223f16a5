"""Decoding in rounds: tokens are drafted, and the target looks at all of them in one pass."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pareflow.runtime.decoding.drafts import Draft, Process
from pareflow.runtime.decoding.speculation import Speculation

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel

Stop = Callable[["torch.Tensor", Any], "torch.Tensor"]


class Rounds:
    """The loop that transformers' `generate(custom_generate=…)` runs once it has prepared a request.

    Each token is the one that the target chooses given all before it, and the text ends where it would end
    without a draft: a drafted token only decides how many of the target's choices one pass gives.

    Source: Leviathan et al., 2023, arXiv:2211.17192, algorithm 1, where both choose the largest score.
    transformers' own loop for this (`assistant_model=`) takes one draft length per request, cannot stop
    drafting within one, and prepares the draft's `generate` anew in each round.
    """

    def __init__(self, draft: Draft, speculation: Speculation, clock: Callable[[], float]) -> None:
        self._draft, self._speculation, self._clock = draft, speculation, clock

    def __call__(
        self,
        model: "PreTrainedModel",
        input_ids: "torch.Tensor",
        logits_processor: Process,
        stopping_criteria: Stop,
        generation_config: Any,
        **prepared: Any,
    ) -> "torch.Tensor":
        """The text (1, tokens) with what was decoded; `past_key_values` then hold all but its last token."""
        past: DynamicCache = prepared["past_key_values"]  # as a parameter it would be taken out before
        text, done = self._round(model, input_ids, input_ids, logits_processor, stopping_criteria, past)
        while not done:
            began, before = self._clock(), text.shape[1]
            asked = self._speculation.length(generation_config.max_length - before - 1)
            guess = self._draft.propose(text, asked, logits_processor) if asked else text
            text, done = self._round(model, text, guess, logits_processor, stopping_criteria, past)
            self._speculation.observe(asked, text.shape[1] - before - 1, self._clock() - began)
        return text

    @staticmethod
    def _round(
        model: "PreTrainedModel",
        text: "torch.Tensor",
        guess: "torch.Tensor",
        process: Process,
        stop: Stop,
        past: "DynamicCache",
    ) -> tuple["torch.Tensor", bool]:
        """The text with the target's choices behind it, as far as the guess foresaw them and one more."""
        import torch

        fresh, places = guess[:, past.get_seq_length() :], guess.shape[1] - text.shape[1] + 1
        logits = model(fresh, past_key_values=past, use_cache=True, logits_to_keep=places).logits.float()
        done, foreseen = False, True
        while foreseen and not done:
            scores = process(text, logits[:, text.shape[1] - guess.shape[1] - 1])
            text = torch.cat([text, scores.argmax(-1, keepdim=True)], dim=-1)
            done = bool(stop(text, None).all())
            foreseen = text.shape[1] <= guess.shape[1] and bool(text[0, -1] == guess[0, text.shape[1] - 1])
        past.crop(text.shape[1] - 1)
        return text, done
