"""Pruning: what goes is what is worth least, what stays still answers, and what cannot be pruned is named."""

import copy
import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from pareflow import network
from pareflow.errors import UnsuitableError, WorkloadError
from pareflow.model import training
from pareflow.model.pruning import (
    ChannelPruning,
    HeadPruning,
    LayerPruning,
    LotteryTicket,
    NMPruning,
    UnstructuredPruning,
)
from pareflow.model.pruning.heads import least_of_all
from pareflow.model.pruning.lottery_ticket import sparsity_after
from pareflow.model.pruning.masks import attach_masks, choose_masks, put_masks, weights_of
from pareflow.model.pruning.n_m import n_of_m
from pareflow.model.pruning.saliency import cubic, saliencies
from pareflow.network import run_torch
from pareflow.workload import Arrays, LoadedWorkload, Samples, Split, Splits, Workload

Load = Callable[[str], LoadedWorkload]
IMPORTANCES = ["magnitude", "taylor", "fisher"]


class Rows(Workload):
    """Rows of numbers to numbers, by a network of the test's own."""

    metric: ClassVar[str] = "rmse"

    def data(self) -> Splits:
        raise NotImplementedError

    def network(self) -> nn.Module:
        raise NotImplementedError

    def preprocess(self, samples: Samples) -> Arrays:
        return {"rows": np.asarray(samples, dtype=np.float32)}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        return outputs["output"]


def rows(samples: Any, targets: Any) -> LoadedWorkload:
    """A workload whose splits are all these samples."""
    split = Split(np.asarray(samples, dtype=np.float32), np.asarray(targets, dtype=np.float32))
    return LoadedWorkload(Rows(), "", "", Splits(split, split, split, split))


def random_rows(width: int, outputs: int = 2) -> LoadedWorkload:
    chance = np.random.default_rng(0)
    return rows(chance.normal(size=(8, width)), chance.normal(size=(8, outputs)))


def unlabelled(workload: LoadedWorkload) -> LoadedWorkload:
    parts = (
        Split(getattr(workload.splits, n).samples) for n in ("train", "calibration", "search", "verdict")
    )
    return replace(workload, splits=Splits(*parts))


def linear(weights: Sequence[Sequence[float]]) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=False)
    layer.weight.data = torch.tensor(weights)
    return layer


def answers(module: nn.Module, workload: LoadedWorkload, samples: int = 5) -> np.ndarray:
    return run_torch(module.eval(), workload.example(samples))["output"]


def zeros(module: nn.Module, *names: str) -> int:
    return sum(int((module.get_parameter(name) == 0).sum()) for name in names)


def made(load_tiny: Load, name: str) -> tuple[Any, LoadedWorkload]:
    """The untrained tiny network, with its workload."""
    workload = load_tiny(name)
    return workload.definition.network(), workload


# --- saliency


@pytest.mark.parametrize(
    ("importance", "expected"),
    [("magnitude", [1.0, 4.0]), ("taylor", [16.0, 36.0]), ("fisher", [10.0, 36.0])],
)
def test_saliency_by_hand(importance: Any, expected: list[float]) -> None:
    """w = (1, 2); rows (1, 0) and (1, 1) with target 0 have residuals 1 and 3, gradients (2, 0) and (6, 6).

    taylor: the mean gradient is (4, 3), times w, squared. fisher: the means of g² are 20 and 18, times w²/2.
    """
    found = saliencies(linear([[1.0, 2.0]]), rows([[1, 0], [1, 1]], [0, 0]), importance, samples=2)
    assert found["weight"].tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("name", ["images", "encoder"])
def test_saliency_changes_nothing_and_knows_no_chance(load_tiny: Load, name: str) -> None:
    module, workload = made(load_tiny, name)
    module.train()
    before = copy.deepcopy(module.state_dict())
    first = saliencies(module, workload, "taylor", 40)
    torch.manual_seed(7)
    second = saliencies(module, workload, "taylor", 40)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training


@pytest.mark.parametrize("importance", ["taylor", "fisher"])
def test_gradients_need_labels(load_tiny: Load, importance: Any) -> None:
    module, workload = made(load_tiny, "images")
    with pytest.raises(WorkloadError, match="these samples need targets"):
        UnstructuredPruning(importance=importance, epochs=0).apply(module, unlabelled(workload))


def test_magnitude_without_training_needs_no_labels(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "images")
    pruned = UnstructuredPruning(epochs=0).apply(module, unlabelled(workload))
    assert zeros(pruned, "features.0.weight", "head.weight") == (72 + 2048) / 2


# --- single weights


def test_smallest_weights_become_zero() -> None:
    pruned = UnstructuredPruning(epochs=0).apply(
        linear([[0.1, -2.0, 0.3, -0.4]]), rows([[1] * 4] * 2, [0, 0])
    )
    assert pruned.get_parameter("weight").tolist() == [[0, -2.0, 0, pytest.approx(-0.4)]]


def test_scope_says_who_is_ranked_with_whom() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 9.0]), "b": torch.tensor([4.0, 5.0, 6.0, 7.0])}
    even = {"a": 0.5, "b": 0.5}
    together = choose_masks(scores, even, "global")
    assert together["a"].tolist() == [False, False, False, True]
    assert together["b"].tolist() == [False, True, True, True]
    alone = choose_masks(scores, even, "layer")
    assert alone["a"].tolist() == [False, False, True, True]
    assert alone["b"].tolist() == [False, False, True, True]


@settings(max_examples=8)
@given(
    sparsity=st.floats(0.01, 0.9), scope=st.sampled_from(["global", "layer"]), steps=st.sampled_from([1, 2])
)
def test_sparsity_is_what_was_asked_for_after_training(
    load_tiny: Load, sparsity: float, scope: Any, steps: int
) -> None:
    """Masks hold while it trains, in one shot and in steps; nothing of them is left in the network."""
    module, workload = made(load_tiny, "texts")
    brief = replace(workload, splits=workload.splits.first(128))
    technique = UnstructuredPruning(
        sparsity=sparsity, scope=scope, steps=steps, epochs=1, layers={"head": 0.0}, batch_size=32
    )
    pruned = technique.apply(module, brief)
    ours = [f"{name}.weight" for name in ("query", "key", "value")]
    wanted = round(sparsity * 768) if scope == "global" else 3 * round(sparsity * 256)
    assert zeros(pruned, *ours) == wanted
    assert zeros(pruned, "head.weight") == 0
    assert pruned.state_dict().keys() == module.state_dict().keys()


def test_sparsity_grows_by_a_cubic() -> None:
    """0.8 in two steps: 0.8 · (1 − 0.5³) = 0.7, then 0.8."""
    assert [0.8 * cubic(step, 2) for step in (0, 1, 2)] == [0, pytest.approx(0.7), 0.8]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "technique",
    [
        UnstructuredPruning(steps=3, epochs=2, sparsity=0.8, batch_size=64),
        LotteryTicket(rounds=2, epochs=1, batch_size=64),
        ChannelPruning(round_to=2, steps=2, epochs=1, batch_size=64),
    ],
    ids=lambda technique: str(technique.name),
)
def test_interrupted_pruning_goes_on_to_the_same_network(
    load_tiny: Load, tmp_path: Path, technique: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at the tenth step, of 7 per epoch, with a checkpoint after each."""
    first, workload = made(load_tiny, "images")
    module = workload.definition.train(first, workload.split("train"))
    whole = technique.apply(module, workload)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0)
    monkeypatch.setattr(training, "CHECKPOINT_TIMES", 0)
    checkpointed = replace(workload, scratch=tmp_path)
    steps = iter(range(10))

    class Stops(type(workload.definition)):  # type: ignore[misc]
        def augment(self, inputs: Any) -> Any:
            if next(steps, None) is None:
                raise Interrupted
            return inputs

    with pytest.raises(Interrupted):
        technique.apply(module, replace(checkpointed, definition=Stops()))
    resumed = technique.apply(module, checkpointed)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in resumed.state_dict().items())


def test_what_is_masked_has_the_lowest_score() -> None:
    """Also where others are worth nothing: what is pruned once stays so."""
    layer = nn.Linear(2, 2)
    attach_masks({"a": layer})
    put_masks({"a": layer}, {"a": torch.tensor([[True, False], [True, True]])})
    scores = weights_of({"a": layer}, {"a.weight": torch.zeros(2, 2)})["a"]
    assert scores.tolist() == [[0, -1], [0, 0]]


def test_layer_that_would_lose_every_weight_is_named() -> None:
    module = nn.Sequential(linear([[0.1, 0.1]]), linear([[5.0], [6.0]]))
    with pytest.raises(UnsuitableError, match=r"every layer must keep some .* `0` would lose all 2"):
        UnstructuredPruning(epochs=0).apply(module, random_rows(2))


def test_network_without_matrix_products_is_refused() -> None:
    with pytest.raises(UnsuitableError, match="`PReLU` has none"):
        UnstructuredPruning(epochs=0).apply(nn.PReLU(), random_rows(2))


class Tied(nn.Module):
    """Token ids and their mask to a logit per token of the vocabulary, by the embedding's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = (self.embedding(ids) * mask.unsqueeze(-1)).mean(1)
        logits: torch.Tensor = self.head(states + self.narrow(torch.relu(self.wide(states))))
        return logits


@pytest.mark.parametrize(
    "technique",
    [
        UnstructuredPruning(epochs=0),
        NMPruning(epochs=0),
        LotteryTicket(rounds=1, epochs=1, rewind_epochs=0),
        ChannelPruning(epochs=0, widths="all"),
    ],
    ids=lambda technique: str(technique.name),
)
def test_weights_that_layers_share_stay_shared_and_dense(load_tiny: Load, technique: Any) -> None:
    torch.manual_seed(1)  # the workload's own is 0
    module, workload = Tied(), load_tiny("texts")
    definition = type("Mine", (type(workload.definition),), {"network": lambda self: Tied()})()
    pruned = technique.apply(module, replace(workload, definition=definition))
    assert pruned.head.weight is pruned.embedding.weight
    assert pruned.head.weight.shape == (7, 16)
    assert zeros(pruned, "head.weight") == 0
    assert zeros(pruned, "wide.weight") or pruned.wide.out_features == 16


def test_pattern_that_matches_no_layer_is_refused(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "texts")
    with pytest.raises(UnsuitableError, match="`haed` matches none of query, key, value, head"):
        UnstructuredPruning(layers={"haed": 0.0}, epochs=0).apply(module, workload)


def test_exempting_every_layer_is_refused(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "texts")
    with pytest.raises(UnsuitableError, match="exempts all of query, key, value, head"):
        UnstructuredPruning(layers={"*": 0.0}, epochs=0).apply(module, workload)


def test_steps_without_training_are_refused() -> None:
    with pytest.raises(ValidationError, match="must have `epochs` to grow in"):
        UnstructuredPruning(steps=2, epochs=0)


# --- n of m


def test_two_of_four_by_hand() -> None:
    kept = n_of_m(torch.tensor([[1.0, 4.0, 2.0, 3.0], [5.0, 6.0, 8.0, 7.0]]), n=2, m=4)
    assert kept.tolist() == [[False, True, False, True], [False, False, True, True]]


@settings(max_examples=20)
@given(n=st.integers(1, 3), inputs=st.sampled_from([4, 8, 12]), kernel=st.sampled_from([1, 3]))
def test_every_group_along_the_inputs_keeps_n(n: int, inputs: int, kernel: int) -> None:
    scores = torch.rand(5, inputs, kernel, kernel, generator=torch.Generator().manual_seed(n))
    groups = n_of_m(scores, n, 4).movedim(1, -1).reshape(-1, 4)
    assert (groups.sum(1) == n).all()
    lost, kept = scores.movedim(1, -1).reshape(-1, 4), groups
    assert (lost.masked_fill(kept, -1).amax(1) <= lost.masked_fill(~kept, 2).amin(1)).all()


def test_pattern_survives_training_and_other_layers_stay_dense(load_tiny: Load) -> None:
    """The convolution has one input channel; the head 512."""
    module, workload = made(load_tiny, "images")
    pruned = NMPruning(epochs=1).apply(module, workload)
    assert ((pruned.get_parameter("head.weight").reshape(-1, 4) == 0).sum(1) == 2).all()
    assert zeros(pruned, "features.0.weight") == 0


def test_network_without_groups_of_m_is_refused(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "images")
    with pytest.raises(UnsuitableError, match=r"multiple of m = 7, but they are `features.0` 1, `head` 512"):
        NMPruning(m=7).apply(module, workload)


def test_n_below_m() -> None:
    with pytest.raises(ValidationError, match="`n < m` must hold, but got n=4, m=4"):
        NMPruning(n=4)


# --- the lottery ticket


def test_ticket_has_the_given_networks_largest_and_the_first_networks_values(load_tiny: Load) -> None:
    """One round at a rate that moves nothing: the mask is the trained network's, its values the first's."""
    first, workload = made(load_tiny, "images")
    trained = workload.definition.train(copy.deepcopy(first), workload.split("train"))
    technique = LotteryTicket(rounds=1, rewind_epochs=0, sparsity=0.75, epochs=1, learning_rate=1e-12)
    ticket = technique.apply(trained, workload)
    layers = ("features.0.weight", "head.weight")
    joint = torch.cat([trained.get_parameter(name).abs().flatten() for name in layers])
    limit = joint.sort().values[round(0.75 * len(joint)) - 1]
    for name in layers:
        expected = first.get_parameter(name) * (trained.get_parameter(name).abs() > limit)
        assert torch.allclose(ticket.get_parameter(name), expected, atol=1e-6)


def test_each_round_takes_the_same_share_of_what_remains() -> None:
    """0.75 in two rounds: half, then half of the half."""
    assert [sparsity_after(turn, 2, 0.75) for turn in (1, 2)] == [0.5, 0.75]


@pytest.mark.parametrize("rounds", [1, 3])
def test_ticket_ends_at_its_sparsity_and_learns(load_tiny: Load, rounds: int) -> None:
    first, workload = made(load_tiny, "images")
    module = workload.definition.train(first, workload.split("train"))
    ticket = LotteryTicket(rounds=rounds, sparsity=0.9, epochs=6, learning_rate=1e-2).apply(module, workload)
    assert zeros(ticket, "features.0.weight", "head.weight") == round(0.9 * (72 + 2048))
    found = answers(ticket, workload, 40).argmax(1)
    assert (found == workload.split("calibration").labels()).mean() > 0.6  # chance: 0.25


def test_ticket_of_another_network_is_refused(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "images")
    narrow = ChannelPruning(round_to=2, epochs=0).apply(module, workload)
    with pytest.raises(UnsuitableError, match=r"is \(4,.* here and \(8,.* there"):
        LotteryTicket(epochs=1).apply(narrow, workload)


# --- channels


def perceptron(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_worth_nothing_go_and_the_answers_stay(importance: Any, scope: Any) -> None:
    workload = random_rows(3)
    module: Any = perceptron(6)
    for channel in (1, 4):
        module[0].weight.data[channel] = module[0].bias.data[channel] = 0
        module[2].weight.data[:, channel] = 0
    technique = ChannelPruning(ratio=1 / 3, round_to=1, importance=importance, scope=scope, epochs=0)
    pruned: Any = technique.apply(module, workload)
    assert pruned[0].out_features == pruned[2].in_features == 4
    assert torch.equal(pruned[0].weight, module[0].weight[[0, 2, 3, 5]])
    np.testing.assert_allclose(answers(pruned, workload), answers(module, workload), rtol=1e-5)


@settings(max_examples=25)
@given(width=st.integers(1, 70), ratio=st.floats(0.01, 0.99), round_to=st.sampled_from([1, 4, 8, 16]))
def test_widths_are_round_and_none_vanishes(width: int, ratio: float, round_to: int) -> None:
    technique = ChannelPruning(ratio=ratio, round_to=round_to, epochs=0)
    try:
        kept = technique.apply(perceptron(width), random_rows(3)).get_parameter("0.weight").shape[0]
    except UnsuitableError as error:
        assert f"multiple of {round_to}" in str(error)  # noqa: PT017
        kept = width
        nearest = round_to * max(1, int(width * (1 - ratio) / round_to + 0.5))
        assert nearest >= width
    else:
        assert kept % round_to == 0
        assert round_to <= kept < width
        assert abs(kept - width * (1 - ratio)) <= round_to / 2 or kept == round_to


class Read(nn.Module):
    """A convolution, whose channels `arrange` puts before a layer that takes them."""

    def __init__(self, arrange: Callable[[torch.Tensor], torch.Tensor], taker: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.conv = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.taker, self.arrange = taker, arrange

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.taker(self.arrange(torch.relu(self.conv(torch.relu(self.before(images))))))
        return found


def shuffled(states: torch.Tensor) -> torch.Tensor:
    """As ShuffleNet does between its groups."""
    batch, channels, *sizes = states.shape
    return states.view(batch, 2, channels // 2, *sizes).transpose(1, 2).reshape(batch, channels, *sizes)


ARRANGED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], nn.Module], bool]] = {
    "channels first": (lambda states: states.flatten(1), lambda: nn.Linear(8 * 36, 3), True),
    "mean over channels last": (
        lambda states: states.permute(0, 2, 3, 1).mean((1, 2)),
        lambda: nn.Linear(8, 3),
        True,
    ),
    "transposed convolution": (lambda states: states, lambda: nn.ConvTranspose2d(8, 3, 2), True),
    "channel mean": (lambda states: states + states.mean(1, keepdim=True), lambda: nn.Conv2d(8, 3, 1), True),
    "channels last": (
        lambda states: states.permute(0, 2, 3, 1).flatten(1),
        lambda: nn.Linear(8 * 36, 3),
        False,
    ),
    "sequence": (
        lambda states: states.flatten(2).transpose(1, 2).flatten(1),
        lambda: nn.Linear(8 * 36, 3),
        False,
    ),
    "channel shuffle": (shuffled, lambda: nn.Conv2d(8, 3, 1), False),
    "pixel shuffle": (
        lambda states: nn.functional.pixel_shuffle(states, 2),
        lambda: nn.Conv2d(2, 3, 1),
        False,
    ),
    "gate of torch": (lambda states: nn.functional.glu(states, 1), lambda: nn.Conv2d(4, 3, 1), False),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_only_channels_that_lie_where_the_graph_says_are_cut(load_tiny: Load, name: str) -> None:
    """Those worth nothing go: the answers stay. Elsewhere that width stays whole, and another shrinks."""
    arrange, taker, known = ARRANGED[name]
    workload, module = load_tiny("images"), Read(arrange, taker())
    for layer in (module.before, module.conv):
        for channel in (1, 2, 4, 7):
            layer.weight.data[channel] = 0
            assert layer.bias is not None
            layer.bias.data[channel] = 0
    before = copy.deepcopy(module.state_dict())
    pruned: Any = ChannelPruning(round_to=1, epochs=0).apply(module, workload)
    assert pruned.before.out_channels == pruned.conv.in_channels == 4
    assert pruned.conv.out_channels == (4 if known else 8)
    if name != "channel mean":  # which is of those that are left
        np.testing.assert_allclose(answers(pruned, workload), answers(module, workload), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_network_whose_only_width_is_in_another_order_is_refused(load_tiny: Load) -> None:
    arrange, taker, _ = ARRANGED["channels last"]
    module = nn.Sequential(Read(arrange, taker()).conv, Arranged(arrange), taker())
    workload = rows(np.random.default_rng(0).normal(size=(8, 8, 8, 8)), np.zeros((8, 3)))
    with pytest.raises(UnsuitableError, match=r"other order .*: `0`. Leave this technique out"):
        ChannelPruning(round_to=1, epochs=0).apply(module, workload)


class Arranged(nn.Module):
    def __init__(self, arrange: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.arrange = arrange

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.arrange(states)


def test_normed_shortcuts_are_checked_too() -> None:
    """A layer norm depends on all channels, but not on their order; what follows it depends on that."""
    torch.manual_seed(0)

    def network(arrange: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), Arranged(arrange), nn.Linear(8, 2))

    pruned = ChannelPruning(round_to=1, epochs=0).apply(network(torch.relu), random_rows(3))
    assert pruned.get_parameter("1.weight").shape == (4,)
    turned = network(lambda states: states.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8))
    with pytest.raises(UnsuitableError, match=r"other order .*: `0`"):
        ChannelPruning(round_to=1, epochs=0).apply(turned, random_rows(3))


class Gated(nn.Module):
    """A fused gate (GLU, SwiGLU): one layer gives both factors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.both, self.outer = nn.Linear(5, 2 * width), nn.Linear(width, 3)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        value, gate = self.both(states).chunk(2, -1)
        gated: torch.Tensor = self.outer(value * torch.sigmoid(gate))
        return gated


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_fused_gate_keeps_its_share_in_round_pairs(ratio: float, scope: Any) -> None:
    pruned: Any = ChannelPruning(ratio=ratio, scope=scope, epochs=0).apply(Gated(64), random_rows(5, 3))
    kept = round(64 * (1 - ratio))
    assert (pruned.both.out_features, pruned.outer.in_features) == (2 * kept, kept)


def test_fused_gate_loses_the_pairs_that_are_worth_nothing_and_never_all() -> None:
    """Values 0 and 1, and the gates of 2 and 3, are nearly nothing: as channels they take all with them."""
    module: Any = Gated(4)
    module.both.weight.data[[0, 1, 6, 7]] *= 0.01
    module.outer.weight.data[:, [0, 1]] *= 0
    pruned: Any = ChannelPruning(round_to=1, epochs=0).apply(module, random_rows(5, 3))
    assert torch.equal(pruned.both.weight, module.both.weight[[2, 3, 6, 7]])
    np.testing.assert_allclose(
        answers(pruned, random_rows(5, 3)), answers(module, random_rows(5, 3)), atol=1e-6
    )


def test_fused_gate_is_cut_in_steps() -> None:
    technique = ChannelPruning(ratio=0.75, steps=3, epochs=1, batch_size=4)
    pruned: Any = technique.apply(Gated(64), random_rows(5, 3))
    assert (pruned.both.out_features, pruned.outer.in_features) == (32, 16)


class Residual(nn.Module):
    """A stem, a block with a depthwise convolution, and a shortcut that ties stem and block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm = nn.BatchNorm2d(32)
        self.outer = nn.Conv2d(32, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states = self.stem(images)
        states = states + self.outer(torch.relu(self.norm(self.depthwise(self.inner(states)))))
        logits: torch.Tensor = self.head(self.grouped(states).mean((2, 3)))
        return logits


def test_inner_widths_shrink_with_all_that_depends_on_them(load_tiny: Load) -> None:
    module, workload = Residual(), load_tiny("images")
    pruned: Any = ChannelPruning(epochs=0).apply(module, workload)
    assert pruned.inner.out_channels == pruned.depthwise.groups == pruned.norm.num_features == 16
    assert pruned.outer.in_channels == pruned.grouped.out_channels == 16
    assert pruned.stem.out_channels == pruned.outer.out_channels == pruned.grouped.in_channels == 16
    assert answers(pruned, workload).shape == (5, 4)


def test_global_scope_takes_from_the_layer_that_is_worth_less(load_tiny: Load) -> None:
    """In one block of the encoder half of the wide layer is nearly zero; it alone shrinks.

    All of the other's are small, but equal among themselves.
    """
    module, workload = made(load_tiny, "encoder")
    for block, size in zip(module.blocks, (1.0, 1e-4), strict=True):
        for layer in (block.wide, block.narrow):
            layer.weight.data = torch.full_like(layer.weight, size)
    module.blocks[0].wide.weight.data[:16] = module.blocks[0].narrow.weight.data[:, :16] = 1e-3
    pruned: Any = ChannelPruning(ratio=0.25, scope="global", epochs=0).apply(module, workload)
    assert [block.wide.out_features for block in pruned.blocks] == [16, 32]


@pytest.mark.parametrize("widths", ["inner", "all"])
def test_widths_say_whether_shortcuts_shrink(load_tiny: Load, widths: Any) -> None:
    module, workload = made(load_tiny, "encoder")
    pruned: Any = ChannelPruning(widths=widths, epochs=0).apply(module, workload)
    states = 8 if widths == "all" else 16
    assert pruned.embedding.embedding_dim == pruned.head.in_features == states
    assert [block.wide.weight.shape for block in pruned.blocks] == [(16, states)] * 2
    assert [block.query.weight.shape for block in pruned.blocks] == [(16, states)] * 2


class Attending(nn.Module):
    """torch's own attention, once alone and once with a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(4, 16)
        self.alone = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        states = self.embedding(rows.reshape(len(rows), 3, 4))
        found: torch.Tensor = self.head(self.layer(self.alone(states, states, states)[0]).mean(1))
        return found


@pytest.mark.parametrize("widths", ["inner", "all"])
def test_heads_of_torchs_own_attention_stay_whole(widths: Any) -> None:
    """Cut by worth, what is left of them would be dealt out anew: channels of one head among all four."""
    module = Attending()
    pruned: Any = ChannelPruning(widths=widths, epochs=0).apply(module, random_rows(12))
    assert pruned.layer.linear1.out_features == 16  # it narrows what is free
    for former, attention in ((module.alone, pruned.alone), (module.layer.self_attn, pruned.layer.self_attn)):
        assert torch.equal(attention.in_proj_weight, former.in_proj_weight)
        assert torch.equal(attention.out_proj.weight, former.out_proj.weight)


def test_ratio_per_layer(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "encoder")
    technique = ChannelPruning(layers={"blocks.0.*": 0.0, "blocks.1.wide": 0.75}, epochs=0)
    pruned: Any = technique.apply(module, workload)
    assert [block.wide.out_features for block in pruned.blocks] == [32, 8]


def test_steps_end_at_the_ratio(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "encoder")
    pruned: Any = ChannelPruning(ratio=0.75, steps=3, epochs=1, batch_size=128).apply(module, workload)
    assert [block.wide.out_features for block in pruned.blocks] == [8, 8]


def test_frozen_parameters_stay_frozen(load_tiny: Load) -> None:
    """Those of layers that lose channels too."""
    module, workload = made(load_tiny, "encoder")
    module.embedding.requires_grad_(False)
    module.blocks[0].wide.requires_grad_(False)
    pruned: Any = ChannelPruning(epochs=1).apply(module, workload)
    cut = pruned.blocks[0].wide
    assert cut.out_features < module.blocks[0].wide.out_features
    assert not any(p.requires_grad for p in (pruned.embedding.weight, cut.weight, cut.bias))
    assert pruned.head.weight.requires_grad
    assert torch.equal(pruned.embedding.weight, module.embedding.weight)


def test_widths_that_stay_are_named(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "images")
    with pytest.raises(UnsuitableError, match=r"multiple of 8, .* stay as they are: `features.0` 8"):
        ChannelPruning().apply(module, workload)


def test_widths_that_are_tied_are_named(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "texts")
    with pytest.raises(UnsuitableError, match=r"tied by shortcuts: `value`; .* Take `widths: all`"):
        ChannelPruning().apply(module, workload)


def test_output_layer_alone_is_refused() -> None:
    with pytest.raises(UnsuitableError, match=r"tied by shortcuts: none; .* Leave this technique out"):
        ChannelPruning().apply(nn.Linear(3, 2), random_rows(3))


class InNumpy(nn.Module):
    """A part of it has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.second(torch.from_numpy(np.tanh(self.first(given).numpy())))
        return answer


def test_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(UnsuitableError, match=r"torch-pruning must understand .* `InNumpy`.*numpy\(\)"):
        ChannelPruning(epochs=0).apply(InNumpy(), random_rows(3))


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        hidden = self.first(given)
        answer: torch.Tensor = self.second(hidden + torch.ones(16))
        return answer


def test_forward_with_fixed_sizes_is_refused() -> None:
    with pytest.raises(UnsuitableError, match=r"`Fixed` must run .* its `forward` raises RuntimeError"):
        ChannelPruning(epochs=0).apply(Fixed(), random_rows(3))


# --- heads


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_heads_worth_nothing_go_and_the_answers_stay(load_tiny: Load, importance: Any, scope: Any) -> None:
    """Of two heads of size 8, in one block the first and in the other the second gives nothing."""
    module, workload = made(load_tiny, "encoder")
    for block, dead in zip(module.blocks, (slice(0, 8), slice(8, 16)), strict=True):
        for layer in (block.query, block.key, block.value):
            layer.weight.data[dead] = 0
            layer.bias.data[dead] = 0
        block.output.weight.data[:, dead] = 0
    technique = HeadPruning(importance=importance, scope=scope, epochs=0)
    pruned: Any = technique.apply(module, workload)
    for block in pruned.blocks:
        assert block.heads == 1
        assert block.query.out_features == block.value.out_features == block.output.in_features == 8
    np.testing.assert_allclose(answers(pruned, workload), answers(module, workload), atol=1e-6)


def test_heads_are_ranked_within_their_layers_norm() -> None:
    """(3, 4) has norm 5: 0.6 and 0.8; (5, 12) has norm 13: 0.38 and 0.92. The best of each layer stays."""
    scores = [torch.tensor([3.0, 4.0]), torch.tensor([5.0, 12.0])]
    assert least_of_all(scores, 1) == [[], [0]]
    assert least_of_all(scores, 3) == [[0], [0]]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_half_a_head_counts_as_one_that_goes(scope: Any) -> None:
    """By hand: 1, 1.5, 2, 2.5 and 3 of four heads."""
    shares, scores = (0.25, 0.375, 0.5, 0.625, 0.75), [torch.arange(1.0, 5.0)]
    gone = [HeadPruning(ratio=share, scope=scope)._gone([], scores) for share in shares]
    assert [len(heads) for (heads,) in gone] == [1, 2, 2, 3, 3]


def test_network_without_heads_is_refused(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "images")
    with pytest.raises(UnsuitableError, match="`TinyCnn` has none"):
        HeadPruning().apply(module, workload)


def test_too_small_a_share_of_heads_is_refused(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "encoder")
    with pytest.raises(UnsuitableError, match=r"at ratio 0.1 none goes of `blocks.0` 2, `blocks.1` 2"):
        HeadPruning(ratio=0.1).apply(module, workload)


class Interleaved(nn.Module):
    """Attention whose heads take turns along the channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = 2
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states.view(len(states), 3, 8)
        query, key, value = (
            layer(states).view(*states.shape[:2], -1, self.heads).permute(0, 3, 1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        found: torch.Tensor = self.output(seen.permute(0, 2, 3, 1).flatten(2)).mean(1)
        return found


def test_heads_whose_channels_are_not_side_by_side_are_refused() -> None:
    module = nn.Sequential(OrderedDict(block=Interleaved(), head=nn.Linear(8, 2)))
    with pytest.raises(UnsuitableError, match=r"as if nothing took what they give, but `output` differs"):
        HeadPruning(epochs=0).apply(module, random_rows(24))


# --- blocks


class Step(nn.Module):
    """x + linear(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        stepped: torch.Tensor = states + self.linear(states)
        return stepped


@pytest.mark.parametrize("importance", ["loss", *IMPORTANCES])
@pytest.mark.parametrize("listed", ["sequential", "named", "list"])
def test_blocks_worth_nothing_go_and_the_answers_stay(importance: Any, listed: Any) -> None:
    torch.manual_seed(0)
    steps = [Step(3) for _ in range(4)]
    named = OrderedDict[str, nn.Module](zip("abcd", steps, strict=True))
    for idle in (steps[0], steps[2]):
        idle.linear.weight.data.zero_()
        idle.linear.bias.data.zero_()
    makers = {"sequential": lambda: nn.Sequential(*steps), "named": lambda: nn.Sequential(named)}
    module = makers.get(listed, lambda: Chain(steps))()
    workload = random_rows(3, outputs=3)
    if importance == "loss":  # the other two are what the targets ask for
        workload = rows(workload.splits.train.samples, answers(module, workload, 8))
    pruned: Any = LayerPruning(importance=importance, epochs=0).apply(module, workload)
    left = [m for m in pruned.modules() if isinstance(m, Step)]
    assert [torch.equal(m.linear.weight, steps[i].linear.weight) for m, i in zip(left, (1, 3), strict=True)]
    np.testing.assert_allclose(answers(pruned, workload), answers(module, workload), atol=1e-6)
    assert listed != "named" or list(pruned._modules) == ["b", "d"]


class Chain(nn.Module):
    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            states = step(states)
        return states


class Counted(Chain):
    """It knows how many steps there are."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for position in range(3):
            states = self.steps[position](states)
        return states


@pytest.mark.parametrize("importance", ["loss", "magnitude"])
def test_network_that_counts_its_blocks_is_refused(importance: Any) -> None:
    module = Counted([Step(3) for _ in range(3)])
    with pytest.raises(UnsuitableError, match=r"`Counted` must run .* raises IndexError"):
        LayerPruning(importance=importance, epochs=0).apply(module, random_rows(3, outputs=3))


class Towers(nn.Module):
    """Two lists of steps, each in a tower that has a config with their number."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (Chain([Step(3) for _ in range(2)]) for _ in range(2))
        for tower in (self.left, self.right):
            tower.config = SimpleNamespace(num_hidden_layers=2)  # type: ignore[assignment]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        both: torch.Tensor = self.left(states) + self.right(states)
        return both


def test_config_counts_the_blocks_that_are_left() -> None:
    """And that of another list, which had as many, still says how many it has."""
    pruned: Any = LayerPruning(ratio=0.25, epochs=0).apply(Towers(), random_rows(3, outputs=3))
    counts = [(len(tower.steps), tower.config.num_hidden_layers) for tower in (pruned.left, pruned.right)]
    assert sorted(counts) == [(1, 1), (2, 2)]


def test_last_block_of_its_class_stays(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "encoder")
    pruned: Any = LayerPruning(ratio=0.99, epochs=0).apply(module, workload)
    assert len(pruned.blocks) == 1
    with pytest.raises(UnsuitableError, match=r"`TinyEncoder` has none \(or none left\)"):
        LayerPruning(epochs=0).apply(pruned, workload)


# --- what they are for


@pytest.mark.parametrize(
    "technique",
    [
        UnstructuredPruning(epochs=0),
        NMPruning(epochs=0),
        ChannelPruning(epochs=0),
        HeadPruning(epochs=0),
        LayerPruning(epochs=0),
    ],
    ids=lambda technique: str(technique.name),
)
def test_network_in_training_mode_is_untouched(load_tiny: Load, technique: Any) -> None:
    """Its batch norms count no sample, it keeps its mode, and what comes of it is for evaluation."""
    module, workload = made(load_tiny, "encoder")
    module.blocks.append(Normed(module.blocks[0]))
    before = copy.deepcopy(module.train().state_dict())
    assert not technique.apply(module, workload).training
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Normed(nn.Module):
    """A block with a batch norm behind it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.norm = copy.deepcopy(block), nn.BatchNorm1d(16)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(self.block(states, mask).transpose(1, 2)).transpose(1, 2)
        return normed


@pytest.mark.parametrize(
    ("technique", "name"),
    [
        (UnstructuredPruning(epochs=0), "images"),
        (NMPruning(epochs=0), "encoder"),
        (ChannelPruning(epochs=0, round_to=4), "images"),
        (ChannelPruning(epochs=0, widths="all"), "encoder"),
        (HeadPruning(epochs=0), "encoder"),
        (LayerPruning(epochs=0), "encoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_pruned_network_becomes_the_same_graph(
    load_tiny: Load, tmp_path: Path, technique: Any, name: str
) -> None:
    module, workload = made(load_tiny, name)
    for folder in ("torch", "onnx"):
        (tmp_path / folder).mkdir()
    network.save(technique.apply(module, workload), "torch", tmp_path / "torch")
    network.convert(tmp_path / "torch", "onnx", workload, tmp_path / "onnx")  # checks its answers


def test_pruning_of_every_kind_follows_each_other(load_tiny: Load) -> None:
    module, workload = made(load_tiny, "encoder")
    recipe = [
        LayerPruning(epochs=0),
        HeadPruning(epochs=0),
        ChannelPruning(epochs=0),
        NMPruning(epochs=0),
        UnstructuredPruning(epochs=4, learning_rate=1e-2, sparsity=0.6),
    ]
    for technique in recipe:
        module = technique.apply(module, workload)
    assert len(module.blocks) == 1
    assert module.blocks[0].heads == 1
    assert module.blocks[0].wide.out_features == 16
    found = answers(module, workload, 40).argmax(1)
    assert (found == workload.split("calibration").labels()).mean() > 0.7


def test_repair_brings_the_quality_back(load_tiny: Load) -> None:
    """Half the channels by size: the loss is higher at once, and lower again after fine-tuning."""
    module, workload = made(load_tiny, "images")
    trained = workload.definition.train(module, workload.split("train")).eval()
    plain, repaired = (
        ChannelPruning(round_to=4, epochs=epochs).apply(trained, workload) for epochs in (0, 4)
    )
    truth = torch.from_numpy(workload.split("search").labels())

    def loss(pruned: nn.Module) -> float:
        inputs = workload.definition.preprocess(workload.split("search").samples).values()
        with torch.no_grad():
            return float(workload.definition.loss(pruned(*map(torch.from_numpy, inputs)), truth))

    assert loss(repaired) < loss(plain)


@pytest.mark.parametrize(
    ("technique", "grid", "networks"),
    [
        (LayerPruning, {"importance": ["magnitude"]}, 4),
        (HeadPruning, {}, 3),
        (ChannelPruning, {"widths": ["inner", "all"]}, 6),
        (ChannelPruning, {"widths": ["inner", "all"], "scope": ["global", "layer"]}, None),
    ],
    ids=["layers", "heads", "channels", "channels of all widths together"],
)
def test_what_takes_as_much_makes_the_same_network(
    load_tiny: Load, technique: Any, grid: dict[str, list[str]], networks: int | None
) -> None:
    """By hand, of shares from a quarter to three quarters: 1, 2, 3, 3 and 4 of six blocks go; 1, 2, 2, 3 and
    3 of four heads; of 32 channels 24, 24, 16, 16 and 8 stay, and of 16 that a shortcut ties 16, then 8."""
    tiny, workload = made(load_tiny, "encoder")
    torch.manual_seed(0)
    module = type(tiny)(heads=4, blocks=6).eval()
    before = copy.deepcopy(module.state_dict())
    choices = itertools.product((0.25, 0.375, 0.5, 0.625, 0.75), *grid.values())
    tried = [technique(**dict(zip(("ratio", *grid), each, strict=True)), epochs=0) for each in choices]
    taken = [one.takes(module, workload) for one in tried]
    states = [one.apply(module, workload).state_dict() for one in tried]
    for ours, theirs in itertools.combinations(range(len(tried)), 2):
        assert (taken[ours] == taken[theirs]) is same(states[ours], states[theirs])
    assert networks in (None, len({json.dumps(each) for each in taken}))
    assert json.loads(json.dumps(taken)) == taken
    assert same(module.state_dict(), before)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("technique", [ChannelPruning(steps=2, epochs=1), HeadPruning(scope="global")])
def test_what_training_or_worth_decides_is_not_told_before(load_tiny: Load, technique: Any) -> None:
    assert technique.takes(*made(load_tiny, "encoder")) is None
