"""What proposes tokens ahead of a language model."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pareflow.catalog import unknown
from pareflow.errors import SpecError, UnsuitableError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Process = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Text (1, tokens) and logits of its next token (1, vocabulary) to scores; the largest is chosen."""


PROMPT_LOOKUP = "prompt_lookup"


class Draft(Protocol):
    """Anything that guesses how a text goes on."""

    def propose(self, text: "torch.Tensor", count: int, process: Process) -> "torch.Tensor":
        """`text` (1, tokens) with at most `count` more tokens behind it."""


class ModelDraft:
    """A smaller model of the same vocabulary. It keeps keys and values of the text that it saw last."""

    def __init__(self, model: "PreTrainedModel") -> None:
        import torch
        from transformers import DynamicCache

        self._model, self._past = model, DynamicCache()
        self._seen = torch.zeros(1, 0, dtype=torch.int64, device=model.device)

    def propose(self, text: "torch.Tensor", count: int, process: Process) -> "torch.Tensor":
        import torch

        draft = text.to(self._model.device)
        self._past.crop(self._common(draft))
        for _ in range(min(count, self._model.config.max_position_embeddings - draft.shape[1])):
            fresh = draft[:, self._past.get_seq_length() :]
            logits = self._model(fresh, past_key_values=self._past, use_cache=True, logits_to_keep=1).logits
            chosen = process(draft, logits[:, -1].float()).argmax(-1, keepdim=True)
            self._seen = draft = torch.cat([draft, chosen], dim=-1)
        return draft.to(text.device)

    def _common(self, text: "torch.Tensor") -> int:
        """How much of what is kept belongs to this text, whose last token is looked at again in any case."""
        size = min(self._past.get_seq_length(), self._seen.shape[1], text.shape[1] - 1)
        return int((self._seen[0, :size] == text[0, :size]).cumprod(0).sum())


class PromptLookup:
    """What stood behind the text's last tokens when they came before.

    Source: Saxena, 2023, prompt lookup decoding; transformers' `PromptLookupCandidateGenerator`.
    """

    def propose(self, text: "torch.Tensor", count: int, process: Process) -> "torch.Tensor":
        import torch
        from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

        lookup = PromptLookupCandidateGenerator(
            eos_token_id=torch.tensor([-1], device=text.device),  # it fails on None; no token is -1
            num_output_tokens=count,
            max_matching_ngram_size=3,
            max_length=text.shape[1] + count + 1,
        )
        found: torch.Tensor = lookup.get_candidates(text)[0]
        return found


def named(name: str, drafts: Mapping[str, "PreTrainedModel"], target: Any) -> Draft:
    """The draft of that name. Raises: SpecError, UnsuitableError."""
    if name == PROMPT_LOOKUP:
        return PromptLookup()
    if name not in drafts:
        raise SpecError("the decoding", [unknown(name, [*drafts, PROMPT_LOOKUP], "draft")])
    config = drafts[name].config
    if config.vocab_size != target.vocab_size:
        raise UnsuitableError(
            "a draft must have the vocabulary of its target",
            f"`{name}` has {config.vocab_size} tokens, not {target.vocab_size}",
            "Name a draft of the same tokenizer",
        )
    require_cuttable(config)
    return ModelDraft(drafts[name])


def require_cuttable(config: Any) -> None:
    """Raises: UnsuitableError where keys and values of a text cannot be cut back to its beginning."""
    from transformers import DynamicCache

    if any(DynamicCache(config=config).is_sliding):
        raise UnsuitableError(
            "attention over the whole text is needed to go on from a part of it",
            f"a layer of {config.model_type} looks back over a window only",
            "Set `prefix_mib` to 0 and name no draft",
        )
