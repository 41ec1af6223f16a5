"""Fine-tuning in minutes on two CPU cores: the head is fitted, then trained with the upper layers."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pareflow.workload import Arrays

from .network import MeanPoolingClassifier, mean_pool

BATCH_SIZE = 32
LABEL_SMOOTHING = 0.1
WARM_UP = 0.1
"""Share of the steps in which the rate rises."""


class FrozenStates:
    """The hidden states of every text after the frozen layers: they never change, so they are computed once.

    Kept without padding, one float32 row per token: 25 KB per text of 16 tokens.
    """

    def __init__(self, network: MeanPoolingClassifier, inputs: Arrays, frozen: int) -> None:
        self.lengths = inputs["attention_mask"].sum(axis=1)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._rows = torch.empty(int(self.lengths.sum()), network.config.hidden_size)
        layers = network.bert.encoder.layer[:frozen]
        for batch in buckets(self.lengths):
            longest = int(self.lengths[batch].max())
            ids = torch.from_numpy(inputs["input_ids"][batch, :longest])
            mask = torch.from_numpy(inputs["attention_mask"][batch, :longest])
            with torch.no_grad():
                states = through(layers, network.bert.embeddings(ids), mask)
            self._rows[self._positions(batch)] = states[mask.bool()]

    def batch(self, texts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """States of shape (texts, longest, hidden), zero where there is no token, and the mask."""
        lengths = torch.from_numpy(self.lengths[texts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        states = torch.zeros(*mask.shape, self._rows.shape[1])
        states[mask] = self._rows[self._positions(texts)]
        return states, mask

    def _positions(self, texts: np.ndarray) -> torch.Tensor:
        spans = [np.arange(self._starts[i], self._starts[i] + self.lengths[i]) for i in texts]
        return torch.from_numpy(np.concatenate(spans))


class UpperLayers(nn.Module):
    """What is trained: the layers above the frozen ones, and the head. It shares them with `network`."""

    def __init__(self, network: MeanPoolingClassifier, frozen: int) -> None:
        super().__init__()
        self.layers = network.bert.encoder.layer[frozen:]
        self.head = network.classifier

    def pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mean_pool(through(self.layers, states, mask), mask)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.pooled(states, mask))
        return logits


def through(layers: nn.ModuleList, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states after these encoder layers; tokens that `mask` leaves out are not attended to."""
    lowest = torch.finfo(states.dtype).min
    bias = torch.zeros(mask.shape).masked_fill(mask == 0, lowest)[:, None, None, :]
    for layer in layers:
        states = layer(states, bias)[0]
    return states


def buckets(lengths: np.ndarray, chance: np.random.Generator | None = None) -> list[np.ndarray]:
    """Positions in batches of about equal length, so that little is padded; in random order by `chance`."""
    blurred = lengths if chance is None else lengths + chance.uniform(0, 2, len(lengths))
    batches = np.array_split(np.argsort(blurred, kind="stable"), -(-len(lengths) // BATCH_SIZE))
    return batches if chance is None else [batches[i] for i in chance.permutation(len(batches))]


def fit_head(upper: UpperLayers, states: FrozenStates, targets: np.ndarray) -> None:
    """Set the head to the logistic regression on the pooled states of the network as downloaded.

    The penalty is half the squared weights per data set, scikit-learn's `C=1`; 60 steps of L-BFGS.
    """
    pooled, labels = torch.empty(len(targets), upper.head.in_features), torch.from_numpy(targets)
    with torch.no_grad():
        for batch in buckets(states.lengths):
            pooled[batch] = upper.eval().pooled(*states.batch(batch))
    nn.init.zeros_(upper.head.weight)
    nn.init.zeros_(upper.head.bias)
    optimizer = torch.optim.LBFGS(upper.head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def penalized_loss() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = upper.head.weight.square().sum() / (2 * len(targets))
        loss = cross_entropy(upper.head(pooled), labels) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(penalized_loss)  # type: ignore[no-untyped-call]


def fine_tune(
    upper: UpperLayers, states: FrozenStates, targets: np.ndarray, *, epochs: int, rate: float, seed: int
) -> None:
    """AdamW with a rate that rises, then falls to zero; the head's is five times as high."""
    torch.manual_seed(seed)
    chance = np.random.default_rng(seed)
    layers, head = list(upper.layers.parameters()), list(upper.head.parameters())
    groups = [{"params": layers, "lr": rate}, {"params": head, "lr": 5 * rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = epochs * len(buckets(states.lengths))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARM_UP * steps), (steps - step) / ((1 - WARM_UP) * steps))
    )
    upper.train()
    for batch in (batch for _ in range(epochs) for batch in buckets(states.lengths, chance)):
        logits, labels = upper(*states.batch(batch)), torch.from_numpy(targets[batch])
        loss = cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(layers, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    upper.eval()
