"""A Llama network, and the file that llama2.c reads it from.

Source: Touvron et al., 2023, arXiv:2302.13971, section 2.2; grouped queries: Ainslie et al., 2023,
arXiv:2305.13245; the file: karpathy/llama2.c, `export.py`, version 0.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pareflow.errors import WorkloadError


class Sizes(NamedTuple):
    """The seven 32-bit integers that the file begins with. `vocabulary` is negative where the classifier
    has weights of its own."""

    width: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    context: int


def turned(x: torch.Tensor) -> torch.Tensor:
    """Queries or keys (n, heads, tokens, size), each pair of values turned by its token's position.

    The pairs come apart, first values before second ones: products of queries and keys stay the same.
    """
    tokens, size = x.shape[2], x.shape[3]
    frequency = 10000 ** (-torch.arange(0, size, 2, device=x.device) / size)
    angle = torch.arange(tokens, device=x.device)[:, None] * frequency
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()), dim=-1)


class Norm(nn.Module):
    """By the root mean square; torch's own has no ONNX operator below opset 23."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.key_heads = sizes.heads, sizes.key_heads
        inner = sizes.width // sizes.heads * sizes.key_heads
        self.query = nn.Linear(sizes.width, sizes.width, bias=False)
        self.key = nn.Linear(sizes.width, inner, bias=False)
        self.value = nn.Linear(sizes.width, inner, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        size, shared = width // self.heads, self.heads // self.key_heads

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(n, tokens, -1, size).transpose(1, 2)

        def for_each_query(y: torch.Tensor) -> torch.Tensor:
            return y[:, :, None].expand(-1, -1, shared, -1, -1).reshape(n, self.heads, tokens, size)

        query, key = turned(heads(self.query(x))), for_each_query(turned(heads(self.key(x))))
        scores = query @ key.transpose(2, 3) / size**0.5
        places = torch.arange(tokens, device=x.device)
        scores = scores.masked_fill(places[:, None] < places, float("-inf"))
        seen = scores.softmax(-1) @ for_each_query(heads(self.value(x)))
        return self.out(seen.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = Norm(sizes.width)
        self.attention = Attention(sizes)
        self.norm = Norm(sizes.width)
        self.gate = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, sizes.width, bias=False)
        self.up = nn.Linear(sizes.width, sizes.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        y = self.norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """Token numbers (n, tokens) to logits of each next token (n, tokens, vocabulary)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        vocabulary = abs(sizes.vocabulary)
        self.embedding = nn.Embedding(vocabulary, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = Norm(sizes.width)
        self.classifier = nn.Linear(sizes.width, vocabulary, bias=False)
        if sizes.vocabulary > 0:
            self.classifier.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x))  # type: ignore[no-any-return]


_ORDER = (
    "attention_norm", "attention.query", "attention.key", "attention.value", "attention.out",
    "norm", "gate", "down", "up",
)  # fmt: skip
"""Of a block's weights in the file, each of all blocks in a row."""


def read(path: Path) -> Llama:
    """The network of a file of llama2.c, version 0. Raises: WorkloadError."""
    try:
        content = path.read_bytes()
        sizes = Sizes(*np.frombuffer(content, "<i4", 7).tolist())
        if min(*sizes[:5], abs(sizes.vocabulary), sizes.context) < 1:
            raise ValueError(f"it begins with {sizes}")
        network, values = Llama(sizes), np.frombuffer(content, "<f4", offset=28)
    except (OSError, ValueError, RuntimeError) as error:
        raise WorkloadError(
            "`weights` must be a file of llama2.c",
            f"{path}: {error}",
            "Fetch karpathy/tinyllamas, stories260K",
        ) from error
    blocks = [block.get_parameter(f"{name}.weight") for name in _ORDER for block in network.blocks]
    targets = [network.embedding.weight, *blocks, network.norm.weight]
    angles = sizes.context * (sizes.width // sizes.heads)
    own = [] if sizes.vocabulary > 0 else [network.classifier.weight]
    wanted = sum(weight.numel() for weight in (*targets, *own)) + angles
    if len(values) != wanted:
        raise WorkloadError(
            f"{path.name} must hold {wanted} numbers for {sizes}", f"it holds {len(values)}", "Fetch it again"
        )
    start = 0
    for weight in targets:
        _fill(weight, values, start)
        start += weight.numel()
    for weight in own:  # behind the angles, which are computed here
        _fill(weight, values, start + angles)
    return network.eval()


def _fill(weight: torch.Tensor, values: np.ndarray, start: int) -> None:
    part = values[start : start + weight.numel()].copy()
    weight.data = torch.from_numpy(part).reshape(weight.shape)
