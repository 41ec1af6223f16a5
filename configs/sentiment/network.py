"""A convolutional network over the words of a sentence."""

import torch
from torch import nn

WINDOWS = (3, 4, 5)
"""Words that a filter sees at once."""


class TextCNN(nn.Module):
    """Word numbers of shape (batch, words) to logits of shape (batch, 2); word 0 is padding.

    Source: Kim, 2014, arXiv:1408.5882, the variant CNN-rand: 300 values per word, 100 filters per window.
    """

    def __init__(self, vocabulary: int, width: int = 300, filters: int = 100) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, window) for window in WINDOWS)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(filters * len(WINDOWS), 2)
        nn.init.uniform_(self.embedding.weight, -0.25, 0.25)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(words).transpose(1, 2)
        pooled = [torch.relu(convolution(hidden)).amax(dim=2) for convolution in self.convolutions]
        logits: torch.Tensor = self.classifier(self.dropout(torch.cat(pooled, dim=1)))
        return logits
