"""Architecture search: subnets are parts of one supernet, and the choice is by measured time."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pareflow import network
from pareflow.errors import UnsuitableError
from pareflow.model import ArchitectureSearch
from pareflow.model.architecture.evolution import mean_loss
from pareflow.model.architecture.image_space import KERNELS, Family, ImageArchitecture, ImageSpace
from pareflow.model.architecture.image_subnet import Subnet
from pareflow.model.architecture.image_supernet import ImageSupernet, cut
from pareflow.model.architecture.latency import Latencies
from pareflow.model.architecture.supernet import Sandwich
from pareflow.model.architecture.transformer_parts import transformer_space
from pareflow.model.architecture.transformer_space import Part, TransformerArchitecture, counts
from pareflow.model.architecture.transformer_supernet import TransformerSupernet, transformer_supernet
from pareflow.model.pruning import HeadPruning, LayerPruning
from pareflow.model.timings import FILE
from pareflow.model.training import Batch, TrainedOn
from pareflow.workload import LoadedWorkload, Split, Splits

Load = Callable[[str], LoadedWorkload]
FAMILIES: tuple[Family, ...] = ("resnet", "mobilenet", "efficientnet")
SPLITS_OF_TRAINING: tuple[TrainedOn, ...] = ("train", "calibration")
families = pytest.mark.parametrize("family", FAMILIES)


def space(family: Family = "mobilenet") -> ImageSpace:
    """For the tiny images: two stages."""
    return ImageSpace(family, channels=1, pixels=8, classes=4, width=8)


def at_random(seed: int, family: Family) -> ImageArchitecture:
    chance = np.random.default_rng(seed)
    return space(family).choose(lambda _, options: options[int(chance.integers(len(options)))])


def supernet(family: Family) -> ImageSupernet:
    torch.manual_seed(0)
    return ImageSupernet(space(family)).eval()


def fresh(workload: LoadedWorkload) -> nn.Module:
    made = workload.definition.network()
    assert isinstance(made, nn.Module)
    return made.eval()


@pytest.fixture(scope="module")
def encoder(load_tiny: Load) -> LoadedWorkload:
    return load_tiny("encoder")


IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_stages_halve_the_image_down_to_four_pixels() -> None:
    """28 pixels: 28, 14, 7; widths double from 16, and the smallest are a quarter, at least 8."""
    large, small = ImageSpace("resnet", 1, 28, 10, 16).largest, ImageSpace("resnet", 1, 28, 10, 16).smallest
    assert [stage.width for stage in large.stages] == [16, 32, 64]
    assert [stage.width for stage in small.stages] == [8, 8, 16]
    assert (large.shrink, small.shrink) == (1, 2)
    assert large.label == "resnet /1 16:3:3:1 32:3:3:1 64:3:3:1"


def test_cut_takes_the_first_channels_and_the_middle_of_a_kernel() -> None:
    kernel = torch.arange(2 * 2 * 5 * 5).reshape(2, 2, 5, 5)
    assert cut(kernel, torch.Size([1, 2, 3, 3])).tolist() == kernel[:1, :, 1:4, 1:4].tolist()


@families
def test_largest_subnet_is_the_supernet_itself(family: Family) -> None:
    whole = supernet(family)
    with torch.no_grad():
        assert torch.allclose(whole(IMAGES, architecture=whole.space.largest), whole(IMAGES), atol=1e-5)


@given(st.integers(0, 10_000), st.sampled_from(FAMILIES))
@settings(max_examples=8)
def test_subnet_on_its_own_answers_as_it_does_within_the_supernet(seed: int, family: Family) -> None:
    whole, architecture = supernet(family), at_random(seed, family)
    alone = whole.subnet(architecture)
    with torch.no_grad():
        assert torch.allclose(alone(IMAGES), whole(IMAGES, architecture=architecture), atol=1e-5)
    assert alone(IMAGES).shape == (5, 4)


@families
def test_training_a_subnet_moves_the_weights_that_it_shares_and_no_others(family: Family) -> None:
    whole = supernet(family)
    whole(IMAGES, architecture=whole.space.smallest).sum().backward()
    head = whole.whole.head.weight.grad
    width = whole.space.smallest.stages[-1].width
    assert head is not None
    assert (head[:, :width] != 0).any()
    assert (head[:, width:] == 0).all()


def test_step_runs_the_largest_the_smallest_and_one_other(load_tiny: Load) -> None:
    """The sandwich; on calibration samples the largest alone counts."""
    workload, seen = load_tiny("images"), list[ImageArchitecture | None]()
    whole = supernet("resnet")

    def watched(images: torch.Tensor, architecture: ImageArchitecture | None = None) -> torch.Tensor:
        seen.append(architecture)
        logits: torch.Tensor = whole(images, architecture=architecture)
        return logits

    targets = torch.zeros(5, dtype=torch.int64)
    for split in SPLITS_OF_TRAINING:
        batch = Batch(split, np.arange(5), {"images": IMAGES}, targets)
        Sandwich(workload, whole.space)(watched, batch)  # type: ignore[arg-type]
    assert seen[:2] == [None, whole.space.smallest]
    assert seen[3:] == [None]


def test_smaller_network_takes_less_time(load_tiny: Load) -> None:
    """Order, not milliseconds: 100 times the products against a few."""
    workload = load_tiny("images")
    large = replace(space("resnet"), width=64).largest
    latencies = Latencies(Subnet(large).eval(), workload, threads=1)
    small = space("resnet").smallest
    assert latencies.share("small", Subnet(small)) < 0.8


def test_networks_are_timed_as_the_workload_exports_them_on_the_inputs_that_they_use(load_tiny: Load) -> None:
    """The mask is not among them here: the exporter leaves it out of the graph."""
    exported = list[nn.Module]()

    class Exporting(type(load_tiny("encoder").definition)):  # type: ignore[misc]
        def export(self, module: nn.Module, workload: LoadedWorkload, path: Path) -> None:
            exported.append(module)
            network.export_onnx(module, workload, path)

    class Letters(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return ids[:, :2].float()

    workload = replace(load_tiny("encoder"), definition=Exporting())
    Latencies(first := Letters(), workload, threads=1).share("again", second := Letters())
    assert exported == [first, second]


def search(**changes: Any) -> ArchitectureSearch:
    return ArchitectureSearch(**{"max_latency_share": 100, "trials": 4, "epochs": 1, **changes})


def test_choice_keeps_to_the_limit_by_the_timings_that_it_left(load_tiny: Load, tmp_path: Path) -> None:
    workload = replace(load_tiny("images"), scratch=tmp_path)
    everything = {a.label for a in (space("resnet").smallest, space("resnet").largest)}
    timings = {label: 1.0 for label in everything} | {space("resnet").smallest.label: 0.4}
    (tmp_path / FILE).write_text(json.dumps(timings))
    found = search(blocks="resnet", max_latency_share=0.5, trials=2).apply(fresh(workload), workload)
    assert isinstance(found, Subnet)
    assert found.architecture == space("resnet").smallest


@pytest.mark.parametrize("given", ["images", "encoder"])
def test_same_timings_give_the_same_weights(load_tiny: Load, given: str, tmp_path: Path) -> None:
    found = list[nn.Module]()
    for name in ("first", "second"):
        scratch = tmp_path / name
        scratch.mkdir()
        if found:
            (scratch / FILE).write_text((tmp_path / "first" / FILE).read_text())
        workload = replace(load_tiny(given), scratch=scratch)
        found.append(search().apply(fresh(workload), workload))
    assert all(map(torch.equal, found[0].state_dict().values(), found[1].state_dict().values()))


def test_limit_that_nothing_meets_is_told_with_the_fastest_found(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match=r"max_latency_share=0.001 .* the fastest found, resnet /"):
        search(blocks="resnet", max_latency_share=0.001, epochs=0).apply(fresh(workload), workload)


@pytest.mark.parametrize(
    ("blocks", "given", "words"),
    [
        ("auto", "texts", r"must take one batch of images .* or be a .* `TinyTransformer` takes \{'ids'"),
        ("resnet", "encoder", r"must take one batch of images .* Take `blocks: transformer`"),
        (
            "transformer",
            "images",
            r"must be a transformer: .* `TinyCnn` has neither. Take `blocks` of im",
        ),
    ],
)
def test_network_of_another_kind_is_refused(load_tiny: Load, blocks: str, given: str, words: str) -> None:
    workload = load_tiny(given)
    with pytest.raises(UnsuitableError, match=words):
        search(blocks=blocks).apply(fresh(workload), workload)


@pytest.mark.parametrize("given", ["images", "encoder"])
def test_numbers_as_targets_are_refused(load_tiny: Load, given: str) -> None:
    workload = load_tiny(given)
    real = (Split(s.samples, s.labels().astype(np.float32)) for s in in_order(workload.splits))
    with pytest.raises(UnsuitableError, match="targets are float32"):
        search().apply(fresh(workload), replace(workload, splits=Splits(*real)))


def test_logits_per_token_are_refused(encoder: LoadedWorkload) -> None:
    given: Any = fresh(encoder)
    with pytest.raises(UnsuitableError, match=r"one tensor of logits .* it gives Tensor \(2, 12, 16\)"):
        search(blocks="transformer").apply(Tokens(given), encoder)


class Tokens(nn.Module):
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.encoder.blocks[0](self.encoder.embedding(ids), mask)
        return states


def test_loss_is_the_mean_over_samples_however_they_are_batched(encoder: LoadedWorkload) -> None:
    """100 samples, 64 and 36."""
    module, split = fresh(encoder), encoder.split("search")
    inputs = map(torch.from_numpy, encoder.definition.preprocess(split.samples).values())
    with torch.no_grad():
        whole = encoder.definition.loss(module(*inputs), torch.from_numpy(split.labels()))
    assert mean_loss(module, encoder, 500) == pytest.approx(float(whole), rel=1e-6)


def in_order(splits: Splits) -> list[Split]:
    return [splits.train, splits.calibration, splits.search, splits.verdict]


@pytest.mark.parametrize(
    "family",
    ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "resnet")],
)
def test_result_exports_and_learns(load_tiny: Load, family: Family, tmp_path: Path) -> None:
    workload = load_tiny("images")
    found = search(blocks=family, trials=2, epochs=2, learning_rate=1e-2).apply(fresh(workload), workload)
    network.export_onnx(found, workload, tmp_path / "model.onnx")
    network.check_export(found, tmp_path / "model.onnx", workload)
    assert accuracy(found, workload) > 0.6  # chance is 0.25


def accuracy(module: nn.Module, workload: LoadedWorkload) -> float:
    split = workload.split("search")
    answers = network.run_torch(module, workload.definition.preprocess(split.samples))["output"]
    return float((answers.argmax(1) == split.labels()).mean())


def test_kernels_are_odd() -> None:
    """The middle of a kernel is where a smaller one lies."""
    assert all(size % 2 for sizes in KERNELS.values() for size in sizes)


# --- transformers


@pytest.fixture(scope="module")
def whole_encoder(encoder: LoadedWorkload) -> TransformerSupernet:
    """Three blocks of two heads and 32 neurons, 16 wide."""
    return transformer_supernet(three_blocks(encoder), encoder)


def three_blocks(encoder: LoadedWorkload) -> nn.Module:
    kind: Any = type(encoder.definition.network())
    torch.manual_seed(0)
    made: nn.Module = kind(blocks=3)
    return made.eval()


def tensors(workload: LoadedWorkload, samples: int = 5) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in workload.example(samples).values()]


def zeroed(given: nn.Module, architecture: TransformerArchitecture) -> nn.Module:
    """The same answers in another way: the weights on what goes are zero; blocks are left out."""
    made = copy.deepcopy(given)
    for part, count in architecture.kept:
        gone = sorted(set(range(len(part.ranked) * part.channels)) - set(part.stay(count)))
        for taker in part.takers:
            made.get_submodule(taker).weight.data[:, gone] = 0  # type: ignore[operator]
    gone_blocks = [block.index for block in architecture.gone]
    stay = [block for i, block in enumerate(made.blocks) if i not in gone_blocks]  # type: ignore[arg-type]
    made.blocks = nn.ModuleList(stay)
    return made


def test_options_are_shares_by_hand() -> None:
    """A quarter, a half, three quarters, all; neurons in multiples of 8."""
    assert counts(12) == (3, 6, 9, 12)
    assert counts(2) == (1, 2)
    assert counts(1) == (1,)
    assert counts(32, 8) == (8, 16, 24, 32)
    assert counts(10, 8) == (8, 10)


def test_best_heads_stay_in_their_order() -> None:
    """Of three heads of two channels, the third is worth most, then the first."""
    part = Part("attention", heads=True, channels=2, givers=("q",), takers=("o",), ranked=(2, 0, 1))
    assert part.stay(1) == [4, 5]
    assert part.stay(2) == [0, 1, 4, 5]


def test_smallest_by_hand(encoder: LoadedWorkload, whole_encoder: TransformerSupernet) -> None:
    """Embedding 112; queries, keys, values 3·136, output 144, wide 136, narrow 144, norm 32; head 34."""
    space = whole_encoder.space
    made = whole_encoder.subnet(space.smallest)
    assert space.largest.label == "transformer heads 2:2:2 neurons 32:32:32"
    assert re.fullmatch(r"transformer -blocks.\d -blocks.\d heads 1 neurons 8", space.smallest.label)
    assert sum(parameter.numel() for parameter in made.parameters()) == 112 + 864 + 34


@given(st.integers(0, 10_000))
@settings(max_examples=12)
def test_part_of_a_transformer_answers_as_zeros_in_it_and_as_a_network_of_its_own(
    encoder: LoadedWorkload, whole_encoder: TransformerSupernet, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    found = whole_encoder.space.choose(lambda _, options: options[int(chance.integers(len(options)))])
    inputs, alone = tensors(encoder), whole_encoder.subnet(found)
    with torch.no_grad():
        expected = zeroed(whole_encoder.whole, found)(*inputs)
        assert torch.allclose(whole_encoder(*inputs, architecture=found), expected, atol=1e-5)
        assert torch.allclose(alone(*inputs), expected, atol=1e-5)
    theirs = {parameter.data_ptr() for parameter in whole_encoder.parameters()}
    assert theirs.isdisjoint(parameter.data_ptr() for parameter in alone.parameters())


def test_parts_go_in_the_order_that_pruning_takes_them_in(
    encoder: LoadedWorkload, whole_encoder: TransformerSupernet
) -> None:
    """Heads as by `head_pruning` on Taylor scores, layers as by `layer_pruning` on the loss without them."""
    space, inputs, whole = whole_encoder.space, tensors(encoder), whole_encoder.whole
    fewer_heads = space.choose(lambda name, options: options[0 if re.fullmatch(r"blocks.\d", name) else -1])
    fewer_layers = space.choose(lambda name, options: options[-2 if name.startswith("layers") else -1])
    assert [len(found.gone) for found in (fewer_heads, fewer_layers)] == [0, 1]
    heads = HeadPruning(importance="taylor", epochs=0).apply(whole, encoder)
    layers = LayerPruning(epochs=0).apply(whole, encoder)
    with torch.no_grad():
        assert torch.allclose(whole_encoder.subnet(fewer_heads)(*inputs), heads(*inputs), atol=1e-5)
        assert torch.allclose(whole_encoder.subnet(fewer_layers)(*inputs), layers(*inputs), atol=1e-5)


def test_neurons_that_nothing_takes_go_first(encoder: LoadedWorkload) -> None:
    given: Any = fresh(encoder)
    given.blocks[0].wide.bias.data += 3  # none is dead by chance
    given.blocks[0].narrow.weight.data[:, [3, 30]] = 0
    given.blocks[0].wide.weight.data[[3, 30]] = 0
    given.blocks[0].wide.bias.data[[3, 30]] = 0
    parts = {part.name: part for part in transformer_space(given, encoder).parts}
    assert set(parts["blocks.0.wide"].ranked[-2:]) == {3, 30}


def test_training_a_part_moves_the_weights_that_it_shares_and_no_others(encoder: LoadedWorkload) -> None:
    whole = transformer_supernet(three_blocks(encoder), encoder)
    smallest = whole.space.smallest
    whole(*tensors(encoder), architecture=smallest)[:, 0].sum().backward()
    weights: dict[str, Any] = dict(whole.whole.named_parameters())
    for part, count in smallest.kept:
        moved = weights[f"{part.takers[0]}.weight"].grad.abs().sum(0).nonzero().flatten()
        assert set(moved.tolist()) <= set(part.stay(count))
        assert len(moved) > 0
    for gone in smallest.gone:
        assert all(weights[name].grad is None for name in weights if name.startswith(f"{gone.name}."))


def smallest_alone(workload: LoadedWorkload, given: nn.Module, scratch: Path) -> LoadedWorkload:
    """The workload, with timings by which nothing but the smallest network is fast enough."""
    space = transformer_supernet(given, workload).space
    timings = {space.smallest.label: 0.4, space.largest.label: 1.0}
    (scratch / FILE).write_text(json.dumps(timings))
    return replace(workload, scratch=scratch)


def test_transformer_within_the_limit_is_a_smaller_one_that_exports_and_learns(
    encoder: LoadedWorkload, tmp_path: Path
) -> None:
    given: Any = fresh(encoder).train()
    before = copy.deepcopy(given.state_dict())
    timed = smallest_alone(encoder, copy.deepcopy(given).eval(), tmp_path)
    technique = search(max_latency_share=0.5, trials=2, epochs=4, learning_rate=2e-2)
    found: Any = technique.apply(given, timed)
    (block,) = found.blocks
    assert (block.heads, block.query.out_features, block.wide.out_features) == (1, 8, 8)
    network.export_onnx(found, encoder, tmp_path / "model.onnx")
    network.check_export(found, tmp_path / "model.onnx", encoder)
    assert accuracy(found, encoder) > 0.8  # chance is 0.5
    assert given.training
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())


class Indexed(nn.Module):
    """An encoder that counts on its second block."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.embedding, self.blocks, self.head = encoder.embedding, encoder.blocks, encoder.head

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.embedding(ids)
        for position in (0, 1):
            states = self.blocks[position](states, mask)
        logits: torch.Tensor = self.head(states.mean(1))
        return logits


def test_network_that_cannot_do_without_a_block_keeps_its_depth(encoder: LoadedWorkload) -> None:
    space = transformer_space(Indexed(fresh(encoder)), encoder)
    assert space.stacks == ()
    assert space.smallest.label == "transformer heads 1:1 neurons 8:8"


class Nested(Indexed):
    """Two encoders of two blocks, one after the other."""

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        self.blocks = nn.ModuleList(Stage(copy.deepcopy(encoder.blocks)) for _ in range(2))


class Stage(nn.Module):
    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            states = block(states, mask)
        return states


def test_of_blocks_within_blocks_the_inner_ones_may_go(encoder: LoadedWorkload) -> None:
    space = transformer_space(Nested(fresh(encoder)), encoder)
    assert {block.container for stack in space.stacks for block in stack} == {
        "blocks.0.blocks",
        "blocks.1.blocks",
    }


class Doubled(nn.Linear):
    """A layer that does more than its weights say."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


class Plus(nn.Module):
    """x + f(x): `first` gives, `second` takes."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        plus: torch.Tensor = states + self.second(torch.relu(self.first(states)))
        return plus


class Odd(nn.Module):
    """A block with gated heads, scaled neurons, and a list of blocks without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = 2, nn.Parameter(torch.ones(32))
        self.query, self.key, self.value, self.gate, self.output = (nn.Linear(16, 16) for _ in range(5))
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.more = nn.Sequential(*(Plus(Doubled(16, 32), nn.Linear(32, 16)) for _ in range(2)))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = (
            layer(states).view(*states.shape[:2], 2, 8).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        states = states + self.output(seen * self.gate(states).sigmoid())
        found: torch.Tensor = self.more(states + self.narrow(self.wide(states) * self.scale))
        return found


def test_what_is_more_than_channels_of_linear_layers_stays(encoder: LoadedWorkload) -> None:
    """Of two plain blocks heads and neurons may go; of an odd one nothing may, nor of the logits."""
    given: Any = fresh(encoder)
    given.blocks.append(Odd())
    given.head = nn.Sequential(given.head, Plus(nn.Linear(2, 16), nn.Linear(16, 2)))
    space = transformer_space(given, encoder)
    plain = {"blocks.0", "blocks.0.wide", "blocks.1", "blocks.1.wide"}
    assert {part.name for part in space.parts} == {*plain, "head.1.first"}
    assert [stack[0].container for stack in space.stacks] == ["blocks"]


def test_network_with_fixed_sizes_is_refused(encoder: LoadedWorkload) -> None:
    given: Any = fresh(encoder)

    class Fixed(type(given.blocks[0])):  # type: ignore[misc]
        def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            self.query(states).view(*states.shape[:2], 2, 8)
            found: torch.Tensor = super().forward(states, mask)
            return found

    given.blocks = nn.ModuleList(Fixed(16, 2) for _ in range(2))
    with pytest.raises(UnsuitableError, match="must run when some of its parts are gone"):
        search().apply(given, encoder)


class Patches(nn.Module):
    """A transformer for images of shape (batch, 1, 8, 8): four rows of 16 pixels, fused projections."""

    def __init__(self, wide: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, wide, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(images.reshape(-1, 4, 16)).mean(1))
        return logits


def test_fused_heads_stay_and_the_rest_is_searched(load_tiny: Load, tmp_path: Path) -> None:
    workload = load_tiny("images")
    torch.manual_seed(0)
    given = Patches().eval()
    found: Any = search(max_latency_share=0.5, trials=2).apply(
        given, smallest_alone(workload, given, tmp_path)
    )
    (layer,) = found.encoder.layers
    assert (layer.self_attn.num_heads, layer.linear1.out_features) == (2, 8)
    network.export_onnx(found, workload, tmp_path / "model.onnx")
    network.check_export(found, tmp_path / "model.onnx", workload)


def test_transformer_for_images_may_be_replaced(load_tiny: Load) -> None:
    workload = load_tiny("images")
    assert isinstance(search(blocks="mobilenet", epochs=0).apply(Patches(), workload), Subnet)


class Attending(nn.Module):
    """Fused attention over rows, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images[:, 0]
        logits: torch.Tensor = self.head(self.attention(rows, rows, rows)[0].mean(1))
        return logits


def test_transformer_of_which_nothing_may_go_is_refused(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match=r"must be free to go, but `Attending` has none"):
        search().apply(Attending(), workload)


def test_bert_is_searched(encoder: LoadedWorkload, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    from pareflow.huggingface.network import Classifier

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 3}
    bert = BertForSequenceClassification(BertConfig(vocab_size=7, max_position_embeddings=12, **sizes))
    given = Classifier(bert, ["input_ids", "attention_mask"]).eval()
    found: Any = search(max_latency_share=0.5, trials=2).apply(
        given, smallest_alone(encoder, given, tmp_path)
    )
    (layer,) = found.model.bert.encoder.layer
    assert layer.attention.self.num_attention_heads == 1
    assert layer.attention.self.query.out_features == layer.attention.output.dense.in_features == 4
    assert layer.intermediate.dense.out_features == 8
    assert found.model.config.num_hidden_layers == 1
    network.export_onnx(found, encoder, tmp_path / "model.onnx")
    network.check_export(found, tmp_path / "model.onnx", encoder)
