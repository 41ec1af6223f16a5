"""Weight sharing: few values per layer, weights drawn by a hash, blocks that share their layers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from pareflow import network
from pareflow.catalog import TECHNIQUES, find
from pareflow.compiler import OnnxRuntime
from pareflow.errors import SpecError, UnsuitableError
from pareflow.model import HashedSharing, KmeansSharing, LayerSharing, Technique
from pareflow.model.folding import fold_batch_norms
from pareflow.model.weight_sharing.codebook import Codebook, bake, centroids, nearest, share
from pareflow.model.weight_sharing.hashed import PRIME, HashedWeight
from pareflow.variant import Step
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]


def fresh(workload: LoadedWorkload) -> nn.Module:
    """An untrained network."""
    made = workload.definition.network()
    assert isinstance(made, nn.Module)
    return made.eval()


def distinct(module: nn.Module) -> list[int]:
    """Distinct values per matrix."""
    return [len(p.unique()) for p in module.parameters() if p.dim() > 1]  # type: ignore[no-untyped-call]


def answers(module: nn.Module, workload: LoadedWorkload) -> np.ndarray:
    return network.run_torch(module, workload.example(5))["output"]


class Blocks(nn.Module):
    """Images of the tiny workload through three equal blocks with norms and one of another structure."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(self.block(4, 4) for _ in range(3)), self.block(4, 8))
        self.head = nn.Linear(8 * 64, 4)

    @staticmethod
    def block(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(self.stem(images)).flatten(1))
        return logits


# k-means


def test_centroids_of_an_example() -> None:
    """From 0 and 10: {0, 1, 2} and {9, 10} have the means 1 and 9.5."""
    values = np.array([10.0, 1.0, 0.0, 9.0, 2.0])
    found = centroids(values, 2)
    assert found.tolist() == [1.0, 9.5]
    assert nearest(values, found).tolist() == [1, 0, 0, 1, 0]


@given(st.lists(st.integers(-1000, 1000), min_size=20, max_size=200, unique=True), st.integers(2, 8))
@settings(max_examples=25)
def test_centroids_are_those_of_scikit_learn(numbers: list[int], clusters: int) -> None:
    """Started alike; only where no cluster is left empty, which scikit-learn moves elsewhere."""
    values = np.sort(np.array(numbers, np.float64))
    starts = np.linspace(values[0], values[-1], clusters)
    ours = centroids(values, clusters)
    if len(np.unique(nearest(values, starts))) < clusters:
        return
    theirs = KMeans(clusters, init=starts[:, None], n_init=1, max_iter=300, tol=0).fit(values[:, None])
    spread = np.square(values - ours[nearest(values, ours)]).sum()
    assert spread <= theirs.inertia_ * (1 + 1e-9) + 1e-9


def test_gradient_of_a_value_is_the_sum_of_its_weights_gradients() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.9, 1.1, -1.0, 0.0]])
    share(layer, "weight", 3)
    assert layer.weight.tolist() == [[1.0, 1.0, -1.0, 0.0]]
    (layer.weight * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum().backward()  # type: ignore[no-untyped-call]
    values = layer.parametrizations.weight.original  # type: ignore[union-attr]
    assert values.tolist() == [0.0, -1.0, 1.0]  # type: ignore[operator]
    assert values.grad.tolist() == [0.0, 4.0, 3.0]  # type: ignore[operator,union-attr]  # zero is not trained
    bake(layer, "weight")
    assert type(layer) is nn.Linear
    assert layer.weight.tolist() == [[1.0, 1.0, -1.0, 0.0]]


@given(st.integers(2, 30), st.integers(2, 6), st.booleans())
@settings(max_examples=20)
def test_weights_have_at_most_so_many_values_and_zeros_stay(size: int, clusters: int, sparse: bool) -> None:
    weight = torch.randn(size, 7, generator=torch.Generator().manual_seed(size))
    if sparse:
        weight[:, 3] = 0
    codebook = Codebook(weight, clusters)
    shared = codebook(codebook.right_inverse(weight))
    assert len(shared.unique()) <= clusters
    assert not sparse or (shared[:, 3] == 0).all()


@pytest.mark.parametrize("name", ["images", "texts"])
def test_every_layer_has_at_most_so_many_values_after_training(load_tiny: Load, name: str) -> None:
    workload = load_tiny(name)
    before = fresh(workload)
    shared = KmeansSharing(clusters=5, epochs=1).apply(before, workload)
    assert max(distinct(shared)) == 5
    untrained = KmeansSharing(clusters=5, epochs=0).apply(before, workload)
    assert not np.array_equal(answers(shared, workload), answers(untrained, workload))


def test_pruned_weights_stay_zero(load_tiny: Load) -> None:
    workload = load_tiny("images")
    pruned = fresh(workload)
    with torch.no_grad():
        pruned.get_parameter("head.weight")[:, ::2] = 0
    head = KmeansSharing(clusters=4, epochs=1).apply(pruned, workload).get_parameter("head.weight")
    assert (head[:, ::2] == 0).all()
    assert len(head.unique()) == 4  # type: ignore[no-untyped-call]


def test_shared_weights_are_as_few_in_the_exported_graph_and_small_when_packed(
    load_tiny: Load, tmp_path: Path
) -> None:
    """A batch norm that the exporter folded would scale each channel's values by another number."""
    workload, module = load_tiny("images"), Blocks().eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_var = torch.rand(norm.num_features) + 0.5
    shared = KmeansSharing(clusters=8, epochs=1).apply(module, workload)
    network.export_onnx(shared, workload, tmp_path / "model.onnx")
    graph = onnx.load_model(tmp_path / "model.onnx").graph
    matrices = [onnx.numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) > 1]
    assert len(matrices) == 6
    assert all(len(np.unique(matrix)) <= 8 for matrix in matrices)
    (tmp_path / "packed").mkdir()
    OnnxRuntime(packed=True).compile(tmp_path, tmp_path / "packed")
    weights = sum(matrix.size for matrix in matrices)
    assert (
        tmp_path / "packed" / "model.packed"
    ).stat().st_size < weights * 3 / 8 + 2500  # 3 bits, and the graph


def test_network_whose_layers_have_few_values_is_refused(load_tiny: Load) -> None:
    workload = load_tiny("images")
    constant = fresh(workload)
    for parameter in constant.parameters():
        parameter.data.fill_(0.5)
    with pytest.raises(UnsuitableError, match=r"more than clusters=16 distinct weights, but none of .*head"):
        KmeansSharing().apply(constant, workload)


class Tied(nn.Module):
    """Two layers that hold one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.second(self.first(images.flatten(1)))
        return logits


def test_layers_that_hold_one_parameter_are_named(load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=r"`second.weight` and `first.weight` hold one parameter"):
        KmeansSharing(epochs=0).apply(Tied(), load_tiny("images"))


# batch norms


def test_folding_keeps_the_answers_and_leaves_no_norm(load_tiny: Load) -> None:
    workload, module = load_tiny("images"), Blocks().eval()
    module.blocks[0][1].running_mean = torch.rand(4)  # type: ignore[index]
    before = answers(module, workload)
    fold_batch_norms(module, workload)
    assert np.allclose(answers(module, workload), before, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


class Branching(Blocks):
    """A convolution whose output goes past its batch norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_var = torch.full((4,), 4.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(images)
        both = self.norm(hidden) + hidden
        logits: torch.Tensor = self.head(both.repeat(1, 2, 1, 1).flatten(1))
        return logits


def test_convolution_that_feeds_more_than_its_norm_is_refused(load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=r"folding .*norm.* changes the outputs"):
        fold_batch_norms(Branching(), load_tiny("images"))


# hashed weights


def test_hash_of_a_position_is_its_formula() -> None:
    """Independent of torch: ((a·p + b)² + c) mod PRIME, and twice as many places as real weights."""
    hashed = HashedWeight(torch.randn(3, 5), 4, (123456789, 987654321, 42))
    real = hashed.real.tolist()
    assert len(real) == 4  # 15 / 4, rounded
    for position, found in enumerate(hashed().flatten().tolist()):
        place = (((123456789 * position + 987654321) % PRIME) ** 2 + 42) % PRIME % 8
        assert found == (real[place] if place < 4 else -real[place - 4])


@pytest.mark.parametrize("name", ["images", "texts"])
def test_hashed_layers_hold_as_many_weights_as_asked_for(load_tiny: Load, name: str) -> None:
    workload = load_tiny(name)
    before = fresh(workload)
    after = HashedSharing(compression=10, epochs=1).apply(before, workload)
    large = [p.numel() for p in before.parameters() if p.dim() > 1 and p.numel() >= 128]
    stored = {path: p.numel() for path, p in after.named_parameters() if path.endswith("hashed.real")}
    assert sorted(stored.values()) == sorted(round(size / 10) for size in large)


def test_exported_graph_holds_the_few_weights_and_the_runtime_draws_the_others(
    load_tiny: Load, tmp_path: Path
) -> None:
    """34,816 weights of 4 bytes, of which an eighth is stored, and no position."""
    workload = load_tiny("images")
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 4))
    hashed = HashedSharing(compression=8, epochs=0).apply(wide, workload)
    network.export_onnx(hashed, workload, tmp_path / "model.onnx")
    network.check_export(hashed, tmp_path / "model.onnx", workload)
    assert (tmp_path / "model.onnx").stat().st_size < 34_816 * 4 / 5


def test_hashed_weights_are_read_by_the_layers_around_them(load_tiny: Load) -> None:
    """The fast path of torch's transformers, taken without gradients, computes with `linear1.weight`."""
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    module = nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(64, 4)).eval()
    hashed = HashedSharing(epochs=0).apply(module, load_tiny("images"))
    images = torch.from_numpy(load_tiny("images").example(3)["images"])
    assert hashed.get_submodule("1.linear1").weight.shape == (32, 8)
    with torch.no_grad():
        fast = hashed(images)
    assert torch.allclose(fast, hashed(images), atol=1e-5)


class Bag(nn.Module):
    """Images of the tiny workload as 64 ids from 0 to 19, of which those that are 0 fill up."""

    def __init__(self, padding_idx: int | None, max_norm: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 16, padding_idx, max_norm)
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        ids = (images.flatten(1).abs() * 8).long().clamp(max=19)
        logits: torch.Tensor = self.head(self.embedding(ids).sum(1))
        return logits


@pytest.mark.parametrize("row", [0, 7, 19])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_row_that_fills_up_stays_as_it_was(load_tiny: Load, row: int, value: float, tmp_path: Path) -> None:
    """It is zero unless its owner wrote another into it; training does not change it, nor do the others."""
    workload, module = load_tiny("images"), Bag(padding_idx=row)
    module.embedding.weight.data[row] = value
    hashed = HashedSharing(epochs=1).apply(module, workload)
    table = hashed.get_submodule("embedding")
    assert table(torch.tensor([[row]])).unique().tolist() == [value]
    others = HashedSharing(epochs=1).apply(Bag(padding_idx=None), workload).get_submodule("embedding")
    assert table.weight.shape == others.weight.shape
    network.export_onnx(hashed, workload, tmp_path / "model.onnx")
    network.check_export(hashed, tmp_path / "model.onnx", workload)
    network.save(hashed, "torch", tmp_path)
    again = network.load("torch", tmp_path)
    assert np.array_equal(answers(again, workload), answers(hashed, workload))


def test_answers_do_not_depend_on_how_far_a_batch_is_padded(load_tiny: Load) -> None:
    hashed = HashedSharing(epochs=1).apply(Bag(padding_idx=0), load_tiny("images")).get_submodule("embedding")
    alone = torch.tensor([[3, 5, 8]])
    padded = torch.nn.functional.pad(alone, (0, 20))
    assert torch.allclose(hashed(alone).sum(1), hashed(padded).sum(1), atol=1e-6)


def test_embedding_with_a_highest_norm_is_left_as_it_is(load_tiny: Load) -> None:
    """Its vectors are scaled when they are looked up, and written back."""
    with pytest.raises(UnsuitableError, match="`Bag` has none"):
        HashedSharing().apply(Bag(padding_idx=None, max_norm=1.0), load_tiny("images"))


def test_network_without_large_layers_is_refused(load_tiny: Load) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(UnsuitableError, match="must have at least 128 weights, but `Sequential` has none"):
        HashedSharing().apply(small, load_tiny("images"))


# shared layers


@pytest.mark.parametrize(("take", "expected"), [("average", 2.0), ("first", 1.0)])
def test_blocks_start_from_the_average_or_the_first(load_tiny: Load, take: str, expected: float) -> None:
    """Weights of 1, 2 and 3 in three blocks; the fourth has another structure."""
    module = Blocks().eval()
    for block, value in enumerate((1.0, 2.0, 3.0)):
        module.get_parameter(f"blocks.{block}.0.weight").data.fill_(value)
    fold = 1 / (1 + 1e-5) ** 0.5  # the norms' deviation is one
    shared = LayerSharing(take=take, epochs=0).apply(module, load_tiny("images"))  # type: ignore[arg-type]
    layers = [shared.get_submodule(f"blocks.{block}.0") for block in range(4)]
    assert layers[0] is layers[1] is layers[2]
    assert layers[3] is not layers[0]
    assert layers[0].get_parameter("weight").mean().item() == pytest.approx(expected * fold)


def test_groups_leave_so_many_blocks(load_tiny: Load) -> None:
    shared = LayerSharing(groups=2, epochs=0).apply(Blocks().eval(), load_tiny("images"))
    first, second, third = (shared.get_submodule(f"blocks.{block}.0") for block in range(3))
    assert first is second
    assert third is not first


def test_shared_layers_stay_shared_through_training_and_the_file(load_tiny: Load, tmp_path: Path) -> None:
    workload = load_tiny("encoder")
    before = fresh(workload)
    shared = LayerSharing(epochs=1).apply(before, workload)
    network.save(shared, "torch", tmp_path)
    again = network.load("torch", tmp_path)
    counts = [sum(p.numel() for p in module.parameters()) for module in (before, shared, again)]
    assert counts[0] > counts[1] == counts[2]
    assert np.array_equal(answers(shared, workload), answers(again, workload))


class Shifted(nn.Module):
    """Holds a matrix and a norm itself, and a shift that `repr` does not tell, as windows of attention do."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.table = shift, nn.Parameter(torch.randn(8, 8))
        self.norm, self.product = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.product(self.norm(torch.roll(rows, self.shift, 1) @ self.table))
        return rows + found


class Windows(nn.Module):
    """Images of the tiny workload through two blocks that differ by their shift alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(nn.Sequential(Shifted(shift)) for shift in (0, 2)))
        self.head = nn.Linear(64, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(images[:, 0]).flatten(1))
        return logits


def test_sharing_what_is_shared_already_changes_nothing(load_tiny: Load) -> None:
    workload, module = load_tiny("images"), Windows().eval()
    first, second = (module.get_submodule(f"blocks.{block}.0") for block in range(2))
    second.table, second.product = first.table, first.product
    for take in ("average", "first"):
        shared = LayerSharing(epochs=0, take=take).apply(module, workload)
        assert np.allclose(answers(shared, workload), answers(module, workload), atol=1e-6)


def test_blocks_share_their_matrices_and_keep_what_differs(load_tiny: Load, tmp_path: Path) -> None:
    """Tables of 1 and 3, norms of 4 and 6: the table becomes 2 in both, the norms and shifts stay."""
    workload, module = load_tiny("images"), Windows().eval()
    for block, (table, norm) in enumerate(((1.0, 4.0), (3.0, 6.0))):
        module.get_parameter(f"blocks.{block}.0.table").data.fill_(table)
        module.get_parameter(f"blocks.{block}.0.norm.weight").data.fill_(norm)
    network.save(LayerSharing(epochs=0).apply(module, workload), "torch", tmp_path)
    first, second = network.load("torch", tmp_path).blocks
    assert first[0].table is second[0].table
    assert first[0].product is second[0].product
    assert first[0].table.unique().tolist() == [2.0]
    assert [block[0].shift for block in (first, second)] == [0, 2]
    assert [block[0].norm.weight.unique().item() for block in (first, second)] == [4.0, 6.0]


def test_matrices_of_modules_that_differ_stay_shared_through_training_and_in_the_graph(
    load_tiny: Load, tmp_path: Path
) -> None:
    workload = load_tiny("images")
    shared = LayerSharing(epochs=1).apply(Windows(), workload)
    tables = [shared.get_parameter(f"blocks.{block}.0.table") for block in range(2)]
    assert tables[0] is tables[1]
    network.export_onnx(shared, workload, tmp_path / "model.onnx")
    network.check_export(shared, tmp_path / "model.onnx", workload)
    stored = onnx.load_model(tmp_path / "model.onnx").graph.initializer
    assert sum(1 for tensor in stored if list(tensor.dims) == [8, 8]) == 2  # the table, and the product


class TiedWithin(nn.Module):
    """A block whose two layers hold one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(rows))
        return found


def test_matrix_that_two_layers_of_a_block_hold_is_averaged_once(load_tiny: Load) -> None:
    """Of 1 and 3: 2, and not the average of 2 and 3."""
    module = nn.Sequential(nn.Flatten(1, 2), TiedWithin(), TiedWithin(), nn.Flatten(), nn.Linear(64, 4))
    for block, value in ((1, 1.0), (2, 3.0)):
        module.get_parameter(f"{block}.first.weight").data.fill_(value)
    shared = LayerSharing(epochs=0).apply(module, load_tiny("images"))
    weights = [
        shared.get_parameter(f"{block}.{layer}.weight") for block in (1, 2) for layer in ("first", "second")
    ]
    assert len(set(weights)) == 1
    assert weights[0].unique().tolist() == [2.0]  # type: ignore[no-untyped-call]


def test_parametrized_layers_share_all_that_their_weights_are_made_of(load_tiny: Load) -> None:
    """The vectors of a spectral norm belong to the matrix."""
    blocks = [nn.Sequential(spectral_norm(nn.Linear(8, 8)), nn.ReLU()) for _ in range(2)]
    module = nn.Sequential(nn.Flatten(1, 2), *blocks, nn.Flatten(), nn.Linear(64, 4)).eval()
    shared = LayerSharing(epochs=0, take="first").apply(module, load_tiny("images"))
    weights = [layer.get_submodule("0").weight for layer in (module[1], shared[1], shared[2])]  # type: ignore[index]
    assert torch.equal(weights[1], weights[0])  # type: ignore[arg-type]
    assert torch.equal(weights[2], weights[0])  # type: ignore[arg-type]


def test_exported_graph_holds_shared_layers_once(load_tiny: Load, tmp_path: Path) -> None:
    workload = load_tiny("images")
    sizes = []
    for name, module in (
        ("plain", Blocks().eval()),
        ("shared", LayerSharing(epochs=0).apply(Blocks().eval(), workload)),
    ):
        network.export_onnx(module, workload, tmp_path / name)
        graph = onnx.load_model(tmp_path / name).graph
        sizes.append(sum(1 for t in graph.initializer if list(t.dims) == [4, 4, 3, 3]))
    assert sizes == [3, 1]


def test_network_without_repeated_blocks_is_refused(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match="more than groups=1 blocks of one structure must exist"):
        LayerSharing().apply(fresh(workload), workload)
    with pytest.raises(UnsuitableError, match="more than groups=3 blocks"):
        LayerSharing(groups=3).apply(Blocks().eval(), workload)


@pytest.mark.parametrize(
    ("name", "settings_", "problem"),
    [
        ("kmeans_sharing", {"clusters": 1}, "clusters: .* greater than or equal to 2"),
        ("kmeans_sharing", {"clusters": 257}, "clusters: .* less than or equal to 256"),
        ("hashed_sharing", {"compression": 1}, "compression: .* greater than 1"),
        ("layer_sharing", {"groups": 0}, "groups: .* greater than or equal to 1"),
    ],
)
def test_setting_out_of_range_is_told(name: str, settings_: dict[str, float], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        find(TECHNIQUES, Step(name, settings_), "technique")


@pytest.mark.parametrize("first", [KmeansSharing(epochs=1), LayerSharing(epochs=0), HashedSharing(epochs=0)])
def test_one_kind_of_sharing_follows_another(load_tiny: Load, first: Technique, tmp_path: Path) -> None:
    """In a recipe: what one leaves, the next takes."""
    workload = load_tiny("encoder")
    made = KmeansSharing(clusters=4, epochs=1).apply(first.apply(fresh(workload), workload), workload)
    network.export_onnx(made, workload, tmp_path / "model.onnx")
    network.check_export(made, tmp_path / "model.onnx", workload)
