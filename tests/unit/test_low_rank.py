"""Low rank: the error is the tail of the singular values, and every layer keeps its place and its inputs."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pareflow import network
from pareflow.errors import SpecError, UnsuitableError, WorkloadError
from pareflow.model import factorization
from pareflow.model.factorization import Inputs, Split
from pareflow.model.low_rank import LowRank
from pareflow.model.spectrum import Spectrum, ranks_by_budget, ranks_by_energy
from pareflow.workload import LoadedWorkload, Splits
from pareflow.workload import Split as Samples

Load = Callable[[str], LoadedWorkload]
DIAGONAL = torch.diag(torch.tensor([3.0, 2.0, 1.0]))


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data, layer.bias = weight, None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]
    return layer


def seen(layer: Any, *batches: torch.Tensor) -> Inputs:
    inputs = Inputs(layer)
    for batch in batches:
        inputs.see(layer, (batch,))
    return inputs


def product(split: Split, rank: int) -> torch.Tensor:
    outer, inner = split.factors(rank)
    return outer @ inner


def test_error_is_the_tail_of_the_singular_values() -> None:
    """Eckart and Young, 1936: of diag(3, 2, 1), rank 1 loses 2² + 1² = 5 of 14, and rank 2 loses 1."""
    split = Split("layer", linear(DIAGONAL), None)
    lost = [float((DIAGONAL - product(split, rank)).square().sum()) for rank in (1, 2, 3)]
    assert lost == pytest.approx([5, 1, 0], abs=1e-9)
    assert split.energies == pytest.approx([9 / 14, 4 / 14, 1 / 14])


def test_seen_through_its_inputs_another_direction_comes_first() -> None:
    """Inputs of deviation 1, 1 and 6 make of diag(3, 2, 1) one of (3, 2, 6): the last is kept."""
    layer = linear(DIAGONAL)
    spread = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 6.0]])
    inputs = seen(layer, torch.cat([spread, -spread]))
    kept = product(Split("layer", layer, inputs), 1)
    assert torch.allclose(kept, torch.diag(torch.tensor([0.0, 0, 1])).double(), atol=1e-6)
    assert torch.allclose(
        product(Split("layer", layer, None), 1), torch.diag(torch.tensor([3.0, 0, 0])).double()
    )


LAYERS: dict[str, Callable[[], tuple[Any, torch.Tensor]]] = {
    "linear": lambda: (nn.Linear(6, 5), torch.randn(40, 6) @ torch.randn(6, 6) + 2),
    "without bias": lambda: (nn.Linear(6, 5, bias=False), torch.randn(40, 6) + 2),
    "tokens": lambda: (nn.Linear(6, 5), torch.randn(4, 10, 6)),
    "convolution": lambda: (nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(4, 3, 9, 9) + 1),
    "dilated": lambda: (nn.Conv2d(3, 8, (3, 2), dilation=2, bias=False), torch.randn(4, 3, 9, 9)),
    "same": lambda: (nn.Conv2d(3, 8, 3, padding="same"), torch.randn(4, 3, 6, 6)),
    "reflecting": lambda: (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), torch.randn(4, 3, 6, 6)),
    "pointwise": lambda: (nn.Conv2d(6, 8, 1), torch.randn(4, 6, 5, 5)),
    "embedding": lambda: (nn.Embedding(9, 4, padding_idx=0), torch.randint(9, (3, 7))),
}


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_full_rank_gives_the_same_outputs(kind: str, aware: bool) -> None:
    torch.manual_seed(0)
    layer, batch = LAYERS[kind]()
    split = Split("layer", layer, seen(layer, batch) if aware else None)
    made = split.layers(min(split.shape))
    with torch.no_grad():
        assert torch.allclose(made(batch), layer(batch), atol=1e-5)


@settings(max_examples=30)
@given(st.sampled_from(["linear", "tokens", "convolution", "dilated"]), st.integers(1, 4), st.integers(0, 99))
def test_activation_aware_loses_no_more_of_the_outputs_than_plain(kind: str, rank: int, seed: int) -> None:
    """On what it was calibrated on; whatever the layer, the rank and the inputs."""
    torch.manual_seed(seed)
    layer, batch = LAYERS[kind]()
    with torch.no_grad():
        lost = [
            float((Split("layer", layer, inputs).layers(rank)(batch) - layer(batch)).square().sum())
            for inputs in (seen(layer, batch), None)
        ]
    assert lost[0] <= lost[1] * (1 + 1e-4)


def test_outputs_keep_their_mean() -> None:
    """What the lost ranks give on average lies in the bias."""
    torch.manual_seed(0)
    layer, batch = LAYERS["linear"]()
    made = Split("layer", layer, seen(layer, batch)).layers(1)
    with torch.no_grad():
        assert torch.allclose(made(batch).mean(0), layer(batch).mean(0), atol=1e-4)


def test_inputs_in_several_batches_are_as_in_one() -> None:
    layer, batch = nn.Linear(3, 2), torch.arange(18.0).view(6, 3) ** 1.5
    parts, whole = seen(layer, batch[:2], batch[2:]), seen(layer, batch)
    assert torch.allclose(parts.covariance, whole.covariance)
    assert torch.allclose(whole.covariance, torch.cov(batch.T.double(), correction=0))


def spectrum(name: str, *energies: float, size: int = 10, uses: float = 1.0) -> Spectrum:
    found = np.asarray(energies) / sum(energies)
    return Spectrum(name, found, size, size, uses)


def test_rank_by_energy_is_the_lowest_that_keeps_it() -> None:
    """Of 4 + 3 + 2 + 1, seven tenths are two ranks; a 4×4 matrix has no room for two, so it stays."""
    steep = [4.0, 3, 2, 1]
    found = ranks_by_energy([spectrum("wide", *steep), spectrum("small", *steep, size=4)], 0.7)
    assert found == {"wide": 2}


def test_ranks_are_bought_where_they_keep_the_most() -> None:
    """Two 10×10 matrices cost 200, a rank 20: half of that are five ranks, and the steep one needs two."""
    flat, steep = spectrum("flat", *[1] * 10), spectrum("steep", 90, 9, *[0.125] * 8)
    assert ranks_by_budget([flat, steep], 0.2) == {"flat": 1, "steep": 1}
    half = ranks_by_budget([spectrum("falling", *range(20, 10, -1)), steep], 0.5)
    assert half == {"falling": 4, "steep": 1}


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=8, max_size=8), min_size=1, max_size=4), st.floats(0.3, 0.99)
)
def test_budget_is_kept(energies: list[list[float]], share: float) -> None:
    spectra = [
        spectrum(str(i), *sorted([*row, 1.0], reverse=True), size=9, uses=i + 1)
        for i, row in enumerate(energies)
    ]
    try:
        ranks = ranks_by_budget(spectra, share)
    except UnsuitableError as error:
        assert "Set `share` to" in error.remedy  # noqa: PT017
        return
    spent = sum(s.cost(ranks.get(s.name, 99)) for s in spectra)
    assert spent <= share * sum(s.dense for s in spectra)


def test_share_too_small_for_one_rank_each_names_the_least() -> None:
    with pytest.raises(UnsuitableError, match=r"costs 0\.2000 .*Set `share` to 0\.2 or more"):
        ranks_by_budget([spectrum("layer", *range(10, 0, -1))], 0.1)


def test_energy_at_which_nothing_shrinks_names_the_nearest() -> None:
    """A 10×10 matrix shrinks up to rank 4; a flat one keeps 0.4 of its energy there, the other 0.7."""
    flat, falling = spectrum("flat", *[1] * 10), spectrum("falling", *[7] * 4, *[2] * 6)
    with pytest.raises(UnsuitableError, match=r"0\.99 of its energy; `falling` is nearest.*to 0\.7 or less"):
        ranks_by_energy([flat, falling], 0.99)
    assert ranks_by_energy([flat, falling], 0.7) == {"falling": 4}


@pytest.mark.parametrize("of", ["parameters", "products", "energy"])
@pytest.mark.parametrize("name", ["images", "texts"])
def test_layers_shrink_and_fine_tuning_repairs_them(load_tiny: Load, name: str, of: Any) -> None:
    workload = load_tiny(name)
    module: Any = workload.definition.network()
    trained = workload.definition.train(module, workload.split("train"))
    technique = LowRank(share=0.6, of=of, epochs=4, learning_rate=1e-2)
    made = technique.apply(trained, workload)
    assert size(made) < size(trained)
    assert accuracy(made, workload) >= accuracy(trained, workload) - 0.05


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def accuracy(module: nn.Module, workload: LoadedWorkload) -> float:
    split = workload.split("search")
    outputs = network.run_torch(module, workload.definition.preprocess(split.samples))
    return float((workload.definition.postprocess(outputs) == split.labels()).mean())


def test_embeddings_are_split_where_asked(load_tiny: Load) -> None:
    workload = load_tiny("texts")
    module: Any = workload.definition.network()
    made: Any = LowRank(epochs=0, share=0.3, embeddings=True).apply(module, workload)
    assert isinstance(made.embedding, nn.Sequential)
    assert isinstance(LowRank(epochs=0, share=0.3).apply(module, workload).embedding, nn.Embedding)


class Shared(nn.Module):
    """One layer used under two names, two layers with one weight, and layers whose weight others read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.tied, self.tie = nn.Linear(64, 64), nn.Linear(64, 64)
        self.tie.weight = self.tied.weight
        self.grouped = nn.Conv2d(64, 64, 1, groups=2)
        self.attention = nn.MultiheadAttention(64, 2, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.tie(self.tied(self.again(self.first(images.flatten(1)))))
        hidden = self.grouped(hidden[:, :, None, None])[:, None, :, 0, 0]
        logits: torch.Tensor = self.head(self.attention(hidden, hidden, hidden)[0][:, 0])
        return logits


def test_layers_that_others_rely_on_are_left_alone(load_tiny: Load) -> None:
    torch.manual_seed(0)
    module = Shared().eval()
    assert set(factorization.layers(module, embeddings=True)) == {"first", "head"}
    made: Any = LowRank(epochs=0, share=0.9).apply(module, load_tiny("images"))
    assert isinstance(made.first, nn.Sequential)
    assert made.again is made.first


def test_classifier_that_is_its_embedding_is_left_alone() -> None:
    module = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64, bias=False))
    module[1].weight = module[0].weight
    assert factorization.layers(module, embeddings=False) == {}


class AsksForTheType(nn.Module):
    """As transformers' vision networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 32, 4, stride=4), nn.Linear(128, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images.to(self.patches.weight.dtype))
        logits: torch.Tensor = self.head(patches.flatten(1).to(self.head.weight.device))
        return logits


def test_split_layers_say_their_type_and_device(load_tiny: Load) -> None:
    workload = load_tiny("images")
    made: Any = LowRank(epochs=0).apply(AsksForTheType(), workload)
    assert len(made.patches) == len(made.head) == 2
    assert network.run_torch(made, workload.example(3))["output"].shape == (3, 4)


def test_network_without_such_layers_is_unsuitable(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match="none of the network's 0 is such"):
        LowRank(epochs=0).apply(nn.Flatten(), workload)
    with pytest.raises(UnsuitableError, match="none of the network's 1 is such"):
        LowRank(epochs=0).apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), workload)


def test_constant_calibration_samples_are_unsuitable(load_tiny: Load) -> None:
    workload = load_tiny("images")
    constant = Samples(np.ones((40, 8, 8), np.float32), np.zeros(40, np.int64))
    flat = replace(workload, splits=replace(workload.splits, calibration=constant))
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UnsuitableError, match=r"`1` sees the same in all of them"):
        LowRank(epochs=0).apply(module, flat)
    LowRank(epochs=0, activation_aware=False).apply(module, flat)


def test_labels_are_needed_for_fine_tuning_alone(load_tiny: Load) -> None:
    workload = load_tiny("images")
    parts = [
        Samples(getattr(workload.splits, n).samples) for n in ("train", "calibration", "search", "verdict")
    ]
    bare = replace(workload, splits=Splits(*parts))
    module: Any = workload.definition.network()
    LowRank(epochs=0).apply(copy.deepcopy(module), bare)
    with pytest.raises(WorkloadError, match="the data have none"):
        LowRank(epochs=1).apply(module, bare)


def test_products_go_without_embeddings() -> None:
    from pareflow.catalog import TECHNIQUES, find
    from pareflow.variant import Step

    with pytest.raises(SpecError, match="must go without `embeddings`"):
        find(TECHNIQUES, Step("low_rank", {"of": "products", "embeddings": True}), "technique")
