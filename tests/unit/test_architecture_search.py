"""Architecture search: subnets are parts of one supernet, and the choice is by measured time."""

import json
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
from pareflow.model.architecture.latency import FILE, Latencies
from pareflow.model.architecture.space import KERNELS, Architecture, Family, Space
from pareflow.model.architecture.subnet import Subnet
from pareflow.model.architecture.supernet import Sandwich, Supernet, cut
from pareflow.model.training import Batch, TrainedOn
from pareflow.workload import LoadedWorkload, Split, Splits

Load = Callable[[str], LoadedWorkload]
FAMILIES: tuple[Family, ...] = ("resnet", "mobilenet", "efficientnet")
SPLITS_OF_TRAINING: tuple[TrainedOn, ...] = ("train", "calibration")
families = pytest.mark.parametrize("family", FAMILIES)


def space(family: Family = "mobilenet") -> Space:
    """For the tiny images: two stages."""
    return Space(family, channels=1, pixels=8, classes=4, width=8)


def at_random(seed: int, family: Family) -> Architecture:
    chance = np.random.default_rng(seed)
    return space(family).choose(lambda _, options: options[int(chance.integers(len(options)))])


def supernet(family: Family) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space(family)).eval()


def fresh(workload: LoadedWorkload) -> nn.Module:
    made = workload.definition.network()
    assert isinstance(made, nn.Module)
    return made.eval()


IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_stages_halve_the_image_down_to_four_pixels() -> None:
    """28 pixels: 28, 14, 7; widths double from 16, and the smallest are a quarter, at least 8."""
    large, small = Space("resnet", 1, 28, 10, 16).largest, Space("resnet", 1, 28, 10, 16).smallest
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
        assert torch.allclose(whole(IMAGES, whole.space.largest), whole(IMAGES), atol=1e-5)


@given(st.integers(0, 10_000), st.sampled_from(FAMILIES))
@settings(max_examples=8)
def test_subnet_on_its_own_answers_as_it_does_within_the_supernet(seed: int, family: Family) -> None:
    whole, architecture = supernet(family), at_random(seed, family)
    alone = Subnet(architecture).eval()
    alone.load_state_dict({name: tensor.detach() for name, tensor in whole.part(alone).items()})
    with torch.no_grad():
        assert torch.allclose(alone(IMAGES), whole(IMAGES, architecture), atol=1e-5)
    assert alone(IMAGES).shape == (5, 4)


@families
def test_training_a_subnet_moves_the_weights_that_it_shares_and_no_others(family: Family) -> None:
    whole = supernet(family)
    whole(IMAGES, whole.space.smallest).sum().backward()
    head = whole.whole.head.weight.grad
    width = whole.space.smallest.stages[-1].width
    assert head is not None
    assert (head[:, :width] != 0).any()
    assert (head[:, width:] == 0).all()


def test_step_runs_the_largest_the_smallest_and_one_other(load_tiny: Load) -> None:
    """The sandwich; on calibration samples the largest alone counts."""
    workload, seen = load_tiny("images"), list[Architecture | None]()
    whole = supernet("resnet")

    def watched(images: torch.Tensor, architecture: Architecture | None = None) -> torch.Tensor:
        seen.append(architecture)
        logits: torch.Tensor = whole(images, architecture)
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
    assert latencies.share("small", lambda: Subnet(small)) < 0.8


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


def test_same_timings_give_the_same_weights(load_tiny: Load, tmp_path: Path) -> None:
    found = list[nn.Module]()
    for name in ("first", "second"):
        scratch = tmp_path / name
        scratch.mkdir()
        if found:
            (scratch / FILE).write_text((tmp_path / "first" / FILE).read_text())
        workload = replace(load_tiny("images"), scratch=scratch)
        found.append(search(blocks="resnet").apply(fresh(workload), workload))
    assert all(map(torch.equal, found[0].state_dict().values(), found[1].state_dict().values()))


def test_limit_that_nothing_meets_is_told_with_the_fastest_found(load_tiny: Load) -> None:
    workload = load_tiny("images")
    with pytest.raises(UnsuitableError, match=r"max_latency_share=0.001 .* the fastest found, resnet /"):
        search(blocks="resnet", max_latency_share=0.001, epochs=0).apply(fresh(workload), workload)


def test_texts_are_refused(load_tiny: Load) -> None:
    workload = load_tiny("texts")
    with pytest.raises(UnsuitableError, match=r"must take one batch of images .* but it takes \{'ids'"):
        search().apply(fresh(workload), workload)


def test_numbers_as_targets_are_refused(load_tiny: Load) -> None:
    workload = load_tiny("images")
    real = (Split(s.samples, s.labels().astype(np.float32)) for s in in_order(workload.splits))
    with pytest.raises(UnsuitableError, match="targets are float32"):
        search().apply(fresh(workload), replace(workload, splits=Splits(*real)))


def in_order(splits: Splits) -> list[Split]:
    return [splits.train, splits.calibration, splits.search, splits.verdict]


@families
def test_result_exports_and_learns(load_tiny: Load, family: Family, tmp_path: Path) -> None:
    workload = load_tiny("images")
    found = search(blocks=family, trials=2, epochs=2, learning_rate=1e-2).apply(fresh(workload), workload)
    network.export_onnx(found, workload, tmp_path / "model.onnx")
    network.check_export(found, tmp_path / "model.onnx", workload)
    split = workload.split("search")
    inputs = torch.from_numpy(workload.definition.preprocess(split.samples)["images"])
    with torch.no_grad():
        right = (found(inputs).argmax(1).numpy() == split.labels()).mean()
    assert right > 0.6  # chance is 0.25


def test_kernels_are_odd() -> None:
    """The middle of a kernel is where a smaller one lies."""
    assert all(size % 2 for sizes in KERNELS.values() for size in sizes)
