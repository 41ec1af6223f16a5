"""Distillation: losses by hand, students that shrink and learn, a teacher that is asked once."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from pareflow import network
from pareflow.errors import InputError, UnsuitableError, WorkloadError
from pareflow.model.distillation import born_again, losses
from pareflow.model.distillation.blocks import bridge, drop_blocks, find_blocks
from pareflow.model.distillation.born_again import BornAgain
from pareflow.model.distillation.distillation import Distillation
from pareflow.model.distillation.early_exit import EarlyExit
from pareflow.model.distillation.exits import with_exits
from pareflow.model.distillation.hinted import by_depth, hinted
from pareflow.model.distillation.response import ResponseTechnique, class_axis
from pareflow.model.distillation.teacher import Teacher
from pareflow.model.training import Batch
from pareflow.store import Store
from pareflow.workload import SPLITS, LoadedWorkload, Split, Splits

Load = Callable[[str], LoadedWorkload]


class Block(nn.Module):
    """A convolution beside a shortcut; halves the image where the channels change."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        stride = 1 if channels_in == channels_out else 2
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(images) + self.shortcut(images)))


class Blocks(nn.Module):
    """Images (batch, 1, 8, 8) to logits (batch, 4), through blocks of these widths."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*map(Block, (widths[0], *widths), widths))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(self.stem(images)))
        return logits


def trained(workload: LoadedWorkload) -> Any:
    definition = workload.definition
    fresh: Any = definition.network()
    return definition.train(fresh, workload.split("train")).eval()


def without_labels(workload: LoadedWorkload) -> LoadedWorkload:
    return replace(workload, splits=Splits(*(Split(getattr(workload.splits, n).samples) for n in SPLITS)))


def with_students(workload: LoadedWorkload, **students: nn.Module) -> LoadedWorkload:
    """The workload with these networks as students, made once."""

    class Mine(type(workload.definition)):  # type: ignore[misc]
        def students(self) -> dict[str, Callable[[], nn.Module]]:
            return {name: lambda student=student: student for name, student in students.items()}  # type: ignore[misc]

    return replace(workload, definition=Mine())


def accuracy(module: nn.Module, workload: LoadedWorkload) -> float:
    split = workload.split("search")
    outputs = network.run_torch(module, workload.definition.preprocess(split.samples))
    return float((workload.definition.postprocess(outputs) == split.labels()).mean())


def batch_of(workload: LoadedWorkload, *indices: int) -> Batch:
    part = workload.split("train").take(np.asarray(indices))
    inputs = {k: torch.from_numpy(v) for k, v in workload.definition.preprocess(part.samples).items()}
    targets = None if part.targets is None else torch.from_numpy(part.targets)
    return Batch("train", np.asarray(indices), inputs, targets)


def test_response_loss_at_a_temperature() -> None:
    """Logits (2 ln 3, 0) at T = 2 are (3/4, 1/4), the student has (1/2, 1/2)."""
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(losses.response(student, teacher, 2.0)) == pytest.approx(expected)


def test_hint_is_a_share_of_the_teachers_square() -> None:
    """Of (1, 2) from (3, 4): a mean squared error of 4, in (9 + 16) / 2."""
    assert float(losses.hint(torch.tensor([1.0, 2]), torch.tensor([3.0, 4]))) == pytest.approx(4 / 12.5)


def test_distances_are_shares_of_their_mean() -> None:
    """Points 0, 3, 4 on a line are 3, 4 and 1 apart, mean 8/3; points 0, 1, 2 are 1, 2, 1 apart, mean 4/3."""
    ours, theirs = torch.tensor([[0.0], [1], [2]]), torch.tensor([[0.0], [3], [4]])
    gaps = np.asarray([3, 4, 1]) / (8 / 3) - np.asarray([1, 2, 1]) / (4 / 3)
    assert float(losses.distance(ours, theirs)) == pytest.approx(np.mean(gaps**2 / 2))


def test_angles_of_a_right_and_a_flat_triangle() -> None:
    """A right one with equal legs has the cosines 0, √½, √½, a flat one -1, 1, 1; each is there twice, and
    nine pairs with a sample itself agree."""
    right, flat = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.tensor([[0.0, 0], [1, 0], [-1, 0]])
    at_the_corner, at_the_others = 1 - 0.5, (1 - math.sqrt(0.5)) ** 2 / 2
    expected = 2 * (at_the_corner + 2 * at_the_others) / 27
    assert float(losses.angle(right, flat)) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 999), st.floats(0.1, 10), st.floats(-5, 5))
def test_relations_do_not_see_scale_and_place(seed: int, scale: float, shift: float) -> None:
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(6, 4)))
    for loss in (losses.distance, losses.angle):
        assert float(loss(rows * scale + shift, rows)) == pytest.approx(0, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 999), st.floats(0.5, 20))
def test_response_loss_is_zero_for_equal_answers_alone(seed: int, temperature: float) -> None:
    ours, theirs = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 5, 3)))
    assert float(losses.response(ours, ours, temperature)) == pytest.approx(0, abs=1e-9)
    assert float(losses.response(ours, theirs, temperature)) > 0


def test_relations_have_finite_gradients_where_samples_coincide() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    (losses.distance(rows, torch.randn(3, 2)) + losses.angle(rows, torch.randn(3, 2))).backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("name", ["images", "texts"])
def test_labels_and_teacher_are_mixed_by_alpha(load_tiny: Load, name: str) -> None:
    workload = load_tiny(name)
    batch, logits = batch_of(workload, 0, 1, 2), torch.zeros(3, 2 if name == "texts" else 4)
    answers = torch.randn_like(logits)
    hard = float(workload.definition.loss(logits, batch.targets))  # type: ignore[arg-type]
    soft = float(losses.response(logits, answers, 4))
    mixed = Distillation(alpha=0.25, temperature=4).response_loss(logits, answers, batch, workload)
    assert float(mixed) == pytest.approx(0.25 * hard + 0.75 * soft)


def taught(
    outputs: torch.Tensor, answers: torch.Tensor, targets: torch.Tensor | None, workload: LoadedWorkload
) -> float:
    batch = Batch("train", np.arange(len(outputs)), {}, targets)
    return float(Distillation(alpha=0, temperature=2).response_loss(outputs, answers, batch, workload))


def test_numbers_are_taught_by_their_squared_error(load_tiny: Load) -> None:
    """A softmax would not see that all of them are 1000 off."""
    answers = torch.tensor([[1.0, 2], [3, 4]])
    assert taught(answers + 1000, answers, torch.zeros(2, 2), load_tiny("images")) == pytest.approx(1e6)


def kl_by_hand(ours: np.ndarray, theirs: np.ndarray, axis: int, temperature: float) -> float:
    """T² · Σ p · ln(p / q) over the classes, the mean over everything else."""
    q, p = (np.exp(logits / temperature) for logits in (ours, theirs))
    q, p = q / q.sum(axis, keepdims=True), p / p.sum(axis, keepdims=True)
    return float(temperature**2 * (p * np.log(p / q)).sum(axis).mean())


@pytest.mark.parametrize(
    ("shape", "targets", "axis"),
    [
        ((5, 3), (5,), 1),
        ((5, 3), (5, 1), 1),
        ((5, 3), None, 1),
        ((2, 3, 4, 5), (2, 4, 5), 1),
        ((2, 3, 4, 5), (2, 1, 4, 5), 1),
        ((2, 3, 6), (2, 6), 1),
        ((2, 6, 3), (2, 6), 2),
        ((2, 4, 5, 3), (2, 4, 5), 3),
        ((2, 3, 3), (2, 3), 1),
    ],
    ids=str,
)
def test_classes_are_on_the_axis_that_targets_lack(
    shape: tuple[int, ...], targets: tuple[int, ...] | None, axis: int, load_tiny: Load
) -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, *shape))
    labels = None if targets is None else torch.zeros(targets, dtype=torch.int64)
    found = taught(torch.from_numpy(ours), torch.from_numpy(theirs), labels, load_tiny("images"))
    assert found == pytest.approx(kl_by_hand(ours, theirs, axis, 2))


@pytest.mark.parametrize(
    ("shape", "targets", "said"),
    [
        ((2, 3), (2, 3), r"shape \(2, 3\) goes with targets of shape \(2, 3\)"),
        ((2, 1), (2,), r"shape \(2, 1\) goes with targets of shape \(2,\)"),
        ((2,), (2,), r"shape \(2,\) goes with"),
        ((2, 84, 100), (2, 7, 5), r"shape \(2, 84, 100\) goes with"),
        ((2, 3, 4, 5), None, "goes with no labels"),
    ],
    ids=["many labels", "one class", "a number", "boxes", "no labels"],
)
def test_outputs_without_an_axis_of_classes_are_refused(
    shape: tuple[int, ...], targets: tuple[int, ...] | None, said: str
) -> None:
    with pytest.raises(UnsuitableError, match=said):
        class_axis(shape, targets)


def of_numbers(workload: LoadedWorkload) -> LoadedWorkload:
    """The workload with four numbers as targets: the share of each class."""
    parts = [getattr(workload.splits, name) for name in SPLITS]
    shares = [Split(part.samples, np.eye(4, dtype=np.float32)[part.labels()]) for part in parts]
    return replace(workload, splits=Splits(*shares))


def test_student_of_numbers_learns_the_teachers_own(load_tiny: Load) -> None:
    """Taught by a softmax of numbers, it would learn their differences alone."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    bias = module.state_dict()["1.bias"] + 1
    student.load_state_dict(module.state_dict() | {"1.bias": bias})
    workload = with_students(of_numbers(load_tiny("images")), near=student)
    made = Distillation(student="near", alpha=0, epochs=5, learning_rate=2e-2).apply(module, workload)
    inputs = workload.definition.preprocess(workload.split("search").samples)
    theirs, ours = (network.run_torch(each, inputs)["output"] for each in (module, made))
    assert np.abs(ours - theirs).mean() < 0.2


@pytest.mark.parametrize("member", [Distillation(student="dense"), BornAgain(), EarlyExit()], ids=type)
def test_dense_outputs_are_refused_before_training_where_targets_do_not_match(
    load_tiny: Load, member: ResponseTechnique
) -> None:
    """A map of four classes for each pixel, and one label for the image."""
    dense = nn.Conv2d(1, 4, 1)
    with pytest.raises(UnsuitableError, match=r"shape \(2, 4, 8, 8\) goes with targets of shape \(2,\)"):
        member.apply(dense, with_students(load_tiny("images"), dense=dense))


MIXES: dict[str, dict[str, Any]] = {
    "teacher alone": {"alpha": 0},
    "labels and teacher": {"alpha": 0.5, "temperature": 2},
    "relations": {"distance": 1.0, "angle": 1.0, "batch_size": 16},
    "hints": {"hints": 1.0, "hint_layers": {"features.0": "features.0"}},
}


@pytest.mark.parametrize("mix", MIXES)
def test_student_of_an_eighth_learns_from_its_teacher(load_tiny: Load, mix: str) -> None:
    workload = load_tiny("images")
    technique = Distillation(
        student="narrow", epochs=5, **{"learning_rate": 2e-2, "batch_size": 32, **MIXES[mix]}
    )
    student = technique.apply(trained(workload), workload)
    assert size(student) < size(trained(workload)) / 3
    assert accuracy(student, workload) > 0.8
    assert not student.training


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_teacher_alone_needs_no_labels(load_tiny: Load) -> None:
    workload = load_tiny("images")
    technique = Distillation(student="narrow", alpha=0, epochs=5, learning_rate=2e-2, batch_size=32)
    assert accuracy(technique.apply(trained(workload), without_labels(workload)), workload) > 0.8


@pytest.mark.parametrize("member", [Distillation(student="narrow"), BornAgain(), Distillation(alpha=0.1)])
def test_labels_with_a_weight_must_be_there(load_tiny: Load, member: Any) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match=r"alpha=0\.1 and the training split has none"):
        member.apply(workload.definition.network(), without_labels(workload))


def test_early_exit_needs_labels(load_tiny: Load) -> None:
    with pytest.raises(WorkloadError, match="the data have none"):
        EarlyExit().apply(Blocks(4, 4), without_labels(load_tiny("images")))


def test_student_of_other_classes_is_refused_by_name(load_tiny: Load) -> None:
    workload = with_students(load_tiny("images"), other=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(UnsuitableError, match=r"TinyCnn gives \(2, 4\) and the student `other` \(2, 3\)"):
        Distillation(student="other").apply(load_tiny("images").definition.network(), workload)


def test_teacher_of_one_number_is_refused(load_tiny: Load) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(UnsuitableError, match="same classes, two at least"):
        Distillation(student="same").apply(module, with_students(load_tiny("images"), same=module))


def test_unknown_student_is_refused_with_the_known(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(InputError, match=r"there is no `tiny`\. Known are narrow"):
        Distillation(student="tiny").apply(workload.definition.network(), workload)


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"width": 1}, "must be below 1"),
        ({"hint_layers": {"a": "b"}}, "`hints > 0` must hold"),
        ({"angle": 1, "batch_size": 2}, "`batch_size >= 3` must hold"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], law: str) -> None:
    with pytest.raises(ValidationError, match=law):
        Distillation(**settings)


def test_taken_exit_is_one_of_them() -> None:
    with pytest.raises(ValidationError, match="`taken <= exits` must hold, but got 3 of 2"):
        EarlyExit(exits=2, taken=3)


def test_blocks_are_dropped_evenly_and_those_that_change_the_shape_stay(load_tiny: Load) -> None:
    """Of eight blocks the fifth halves the image; a half leaves it and three of the other seven."""
    module = Blocks(*[4] * 4, *[8] * 4)
    assert find_blocks(module) == [f"blocks.{i}" for i in range(8)]
    made: Any = drop_blocks(module, load_tiny("images"), 0.5)
    assert [block.conv.in_channels for block in made.blocks] == [4, 4, 4, 8]
    kept = [module.blocks[i] for i in (0, 2, 4, 5)]
    assert all(torch.equal(a.conv.weight, b.conv.weight) for a, b in zip(made.blocks, kept, strict=True))  # type: ignore[union-attr,arg-type]


def test_blocks_that_have_names_keep_them(load_tiny: Load) -> None:
    """As in torchvision's transformers."""
    module = Blocks(4, 4, 4, 4)
    module.blocks = nn.Sequential(OrderedDict((f"layer_{i}", Block(4, 4)) for i in range(4)))
    assert list(drop_blocks(module, load_tiny("images"), 0.5).blocks._modules) == ["layer_0", "layer_2"]  # type: ignore[union-attr]
    early: Any = with_exits(module, load_tiny("images"), 1).networks[0]
    assert list(early.blocks._modules) == ["layer_0", "layer_1"]


def test_half_a_block_stays(load_tiny: Load) -> None:
    """Rounded to even, half of five blocks would be two, and half of three as many."""
    made: Any = drop_blocks(Blocks(4, 4, 4, 4, 4), load_tiny("images"), 0.5)
    assert len(made.blocks) == 3


def test_depths_that_leave_as_many_blocks_make_the_same_student(load_tiny: Load) -> None:
    """By hand: of three blocks one stays at a quarter and at three eighths, two at the other depths."""
    workload, module = load_tiny("images"), Blocks(4, 4, 4).eval()
    tried = [Distillation(depth=depth, width=1.0) for depth in (0.25, 0.375, 0.5, 0.625, 0.75)]
    last, two = ["blocks.2"], ["blocks.1", "blocks.2"]
    assert [one.takes(module, workload) for one in tried] == [two, two, last, last, last]
    left = [list(one._smaller(module, workload).state_dict()) for one in tried]
    assert left == [left[0]] * 2 + [left[2]] * 3
    assert Distillation(student="narrow").takes(module, workload) is None
    assert Distillation(width=0.5).takes(module, workload) is None


def test_depth_that_drops_no_block_names_those_that_do(load_tiny: Load) -> None:
    with pytest.raises(
        UnsuitableError, match=r"1 of 2 like `blocks\.0` do, and `depth` keeps 2.*from 0\.50 to"
    ):
        drop_blocks(Blocks(4, 8), load_tiny("images"), 0.9)


def test_network_without_blocks_is_refused(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match="TinyCnn has no two of them"):
        Distillation(depth=0.5).apply(workload.definition.network(), workload)


@pytest.mark.parametrize("shrunk", [{"depth": 0.5, "width": 1}, {"width": 0.5}, {"width": 1, "rank": 0.4}])
def test_copy_that_is_smaller_learns(load_tiny: Load, shrunk: dict[str, float]) -> None:
    workload, module = load_tiny("images"), Blocks(8, 8, 8, 8)
    made = Distillation(**shrunk, epochs=1, hints=1.0).apply(module, workload)  # type: ignore[arg-type]
    assert size(made) < 0.7 * size(module)


def test_hints_go_from_blocks_to_blocks_as_deep(load_tiny: Load) -> None:
    assert by_depth(Blocks(4, 4), Blocks(4, 4, 4, 4)) == {"blocks.0": "blocks.1", "blocks.1": "blocks.3"}


def test_hints_are_projected_to_the_teachers_shape(load_tiny: Load) -> None:
    workload = load_tiny("images")
    student, teacher = Blocks(2, 4), Blocks(8, 12)
    pupil = hinted(student, teacher, by_depth(student, teacher), workload)
    inputs = [torch.from_numpy(array) for array in workload.example(3).values()]
    logits, states = pupil(*inputs)
    assert torch.equal(logits, student(*inputs))
    assert [tuple(state.shape) for state in states] == [(3, 8, 8, 8), (3, 12, 4, 4)]


def test_hint_layers_that_are_not_there_are_named(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match="the teacher runs no `nowhere`"):
        hinted(Blocks(2, 4), Blocks(4, 4), {"blocks.0": "nowhere"}, workload)
    with pytest.raises(UnsuitableError, match=r"`stem` and the teacher's `head` have shapes"):
        hinted(Blocks(2, 4), Blocks(4, 4), {"stem": "head"}, workload)


def test_bridge_between_equal_shapes_changes_nothing_at_first() -> None:
    for shape in ((2, 3), (2, 5, 3), (2, 3, 4, 4)):
        state = torch.randn(shape)
        assert torch.allclose(bridge(state.shape, state.shape, "both")(state), state, atol=1e-6)


@pytest.mark.parametrize("name", ["images", "texts"])
def test_teacher_answers_each_sample_in_its_place(load_tiny: Load, name: str) -> None:
    workload = load_tiny(name)
    module, batch = trained(workload), batch_of(workload, 5, 300, 0, 7)
    with torch.no_grad():
        assert torch.allclose(Teacher(module, workload)(batch)[0], module(*batch.inputs.values()), atol=1e-4)


def test_teacher_is_asked_once_for_all_students(load_tiny: Load, tmp_path: Path) -> None:
    store = Store(tmp_path)
    workload = replace(load_tiny("images"), shared=store.ensure)
    module, batch = trained(workload), batch_of(workload, 5, 0, 7)
    logits, _ = Teacher(module, workload)(batch)
    assert torch.allclose(logits, module(*batch.inputs.values()), atol=1e-5)

    def invented(key: str, write: Callable[[Path], None]) -> Path:
        assert store.holds(key)
        none = {name: np.zeros((1000, 4), np.float32) for name in ("train", "calibration")}
        np.savez(tmp_path / "answers.npz", **none)  # type: ignore[arg-type]
        return tmp_path

    assert not Teacher(module, replace(workload, shared=invented))(batch)[0].any()  # read, not made again
    module.head.bias.data += 1
    Teacher(module, workload)
    Teacher(module, replace(workload, digest="other data"))
    assert len(list((tmp_path / "entries").iterdir())) == 3


def test_teacher_sees_what_the_student_sees_where_samples_are_augmented(
    load_tiny: Load, tmp_path: Path
) -> None:
    workload = load_tiny("images")

    class Shifted(type(workload.definition)):  # type: ignore[misc]
        def augment(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"images": inputs["images"].roll(1, 2)}

    store = Store(tmp_path)
    shifting = replace(workload, definition=Shifted(), scratch=tmp_path / "scratch", shared=store.ensure)
    module, batch = trained(workload), batch_of(workload, 1, 2)
    changed = replace(batch, inputs=shifting.definition.augment(batch.inputs))
    assert torch.equal(Teacher(module, shifting)(changed)[0], module(*changed.inputs.values()))
    assert not (tmp_path / "scratch").exists()
    assert list((tmp_path / "entries").iterdir()) == []


def test_network_born_again_learns_anew(load_tiny: Load) -> None:
    workload = load_tiny("images")
    parent = trained(workload)
    child = BornAgain(generations=2, epochs=3, learning_rate=1e-2, batch_size=32).apply(parent, workload)
    assert accuracy(child, workload) > 0.8
    assert not torch.equal(child.head.weight, parent.head.weight)  # type: ignore[union-attr,arg-type]


def test_each_generation_begins_elsewhere(load_tiny: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """None from the weights that its parent, or the workload's own network, began with."""
    workload = load_tiny("images")
    begun = [workload.definition.network()]

    def at_once(child: nn.Module, *_: Any, **__: Any) -> nn.Module:
        begun.append(child)
        return child

    monkeypatch.setattr(born_again, "fit", at_once)
    BornAgain(generations=2).apply(begun[0], workload)
    for one, other in itertools.combinations(begun, 2):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert not all(torch.equal(*pair) for pair in pairs)


def test_network_of_other_layers_is_not_born_again(load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=r"`stem\.weight` is \(4,.* here and None there"):
        BornAgain().apply(Blocks(4, 4), load_tiny("images"))


def test_exits_share_what_comes_before_and_nothing_behind(load_tiny: Load) -> None:
    module = Blocks(4, 4, 8, 8)
    found: Any = with_exits(module, load_tiny("images"), 3)
    first, second, third, whole = found.networks
    assert [len(net.blocks) for net in found.networks] == [1, 2, 3, 4]
    assert whole is module
    assert first.stem is second.stem is module.stem
    assert second.blocks[0] is module.blocks[0]
    assert second.blocks[1].block is module.blocks[1]
    assert len({id(net.head) for net in found.networks}) == 4
    inputs = [torch.from_numpy(a) for a in load_tiny("images").example(3).values()]
    shapes = [(tuple(logits.shape), tuple(state.shape)) for logits, (state,) in found(*inputs)]
    assert shapes == [((3, 4), (3, 8, 4, 4))] * 4
    assert isinstance(third.blocks[2].bridge, nn.Conv2d)  # as large as the last already
    assert [layer.groups for layer in first.blocks[0].bridge if isinstance(layer, nn.Conv2d)] == [4, 1, 8, 1]


def test_exits_leave_the_whole_network_as_long_as_it_was(load_tiny: Load) -> None:
    """Llama runs as many blocks as its config says, which the blocks hold too."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from pareflow.huggingface.network import Classifier

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 4}
    llama = LlamaForSequenceClassification(LlamaConfig(vocab_size=7, pad_token_id=0, **sizes))
    whole, workload = Classifier(llama, ["input_ids", "attention_mask"]).eval(), load_tiny("encoder")
    before = network.run_torch(whole, workload.example(3))["output"]
    found: Any = with_exits(whole, workload, 1)
    assert np.array_equal(network.run_torch(found.networks[-1], workload.example(3))["output"], before)
    assert [net.model.config.num_hidden_layers for net in found.networks] == [2, 4]


@pytest.mark.parametrize("taken", [1, 2])
def test_exit_that_is_taken_ends_there_and_has_learned(load_tiny: Load, taken: int) -> None:
    workload = load_tiny("images")
    technique = EarlyExit(
        exits=2, taken=taken, alpha=0.5, temperature=2, epochs=6, learning_rate=1e-2, batch_size=32
    )
    made: Any = technique.apply(Blocks(6, 6, 6), workload)
    assert len(made.blocks) == taken
    assert accuracy(made, workload) > 0.7


def test_more_exits_than_blocks_are_refused(load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=r"2 exits were asked for, and there are 2 blocks.*at most 1"):
        EarlyExit(exits=2).apply(Blocks(4, 4), load_tiny("images"))
