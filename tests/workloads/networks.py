"""The smallest convolutional network and the smallest transformer that learn anything."""

import torch
from torch import nn


class TinyCnn(nn.Module):
    """Images of shape (batch, 1, 8, 8) to logits of shape (batch, 4)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width * 8 * 8, 4)

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


class TinyBlock(nn.Module):
    """Attention with heads, and a feed-forward part; states keep their shape (batch, length, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(states).view(*states.shape[:2], self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = nn.functional.scaled_dot_product_attention(query, key, value, mask[:, None, None] > 0)
        states = states + self.output(seen.transpose(1, 2).flatten(2))
        normed: torch.Tensor = self.norm(states + self.narrow(torch.relu(self.wide(states))))
        return normed


class TinyEncoder(nn.Module):
    """A transformer with repeated blocks: token ids and their mask to logits of shape (batch, 2)."""

    def __init__(self, width: int = 16, heads: int = 2, blocks: int = 2, tokens: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(TinyBlock(width, heads) for _ in range(blocks))
        self.head = nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.embedding(ids)
        for block in self.blocks:
            states = block(states, mask)
        weights = mask.unsqueeze(-1).to(states.dtype)
        logits: torch.Tensor = self.head((states * weights).sum(1) / weights.sum(1))
        return logits


class TinyBert(nn.Module):
    """BERT of `transformers`: token ids and their mask to logits of shape (batch, 2)."""

    def __init__(self, width: int = 16, heads: int = 2, blocks: int = 2, tokens: int = 7) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        config = BertConfig(
            vocab_size=tokens,
            hidden_size=width,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            max_position_embeddings=32,
        )
        self.bert = BertForSequenceClassification(config)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.bert(input_ids=ids, attention_mask=mask).logits
        return logits


class EigenNet(nn.Module):
    """Uses an operation that ONNX lacks."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = torch.linalg.eigvals(images[:, 0]).real[:, :4]
        return values
