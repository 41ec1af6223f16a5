"""A BERT encoder, mean pooling, and a linear head."""

import torch
from torch import nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolingClassifier(BertPreTrainedModel):  # type: ignore[misc]  # transformers is untyped
    """Token ids of shape (batch, sequence) to logits of shape (batch, classes).

    Source: Reimers and Gurevych, 2019, arXiv:1908.10084, section 3 (mean pooling). Departure: the pooled
    states are not scaled to unit length, so that the head sees how far a text lies from the origin.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        states = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(mean_pool(states, attention_mask)))


def mean_pool(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of each text: (batch, sequence, hidden) to (batch, hidden)."""
    weights = attention_mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)
