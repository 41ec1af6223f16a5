"""The smallest convolutional network and the smallest transformer that learn anything."""

import torch
from torch import nn


class TinyCnn(nn.Module):
    """Images of shape (batch, 1, 8, 8) to logits of shape (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8 * 8 * 8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(images).flatten(1))
        return logits


class TinyTransformer(nn.Module):
    """Token ids and their mask, both of shape (batch, length), to logits of shape (batch, 2)."""

    def __init__(self, width: int = 16, tokens: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(ids)
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2) / tokens.shape[-1] ** 0.5
        hidden = self.norm(tokens + scores.softmax(-1) @ self.value(tokens))
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        logits: torch.Tensor = self.head((hidden * weights).sum(1) / weights.sum(1))
        return logits


class EigenNet(nn.Module):
    """Uses an operation that ONNX lacks."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = torch.linalg.eigvals(images[:, 0]).real[:, :4]
        return values
