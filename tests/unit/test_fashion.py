"""The workload of `configs/fashion`, on files of a few images."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from pareflow.errors import WorkloadError
from pareflow.workload import Workload, define, load

CODE = Path(__file__).parents[2] / "configs" / "fashion"


def write(folder: Path, part: str, images: np.ndarray) -> None:
    labels = np.arange(len(images), dtype=np.uint8) % 10
    for kind, header, content in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        path = folder / f"{part}-{kind}-ubyte.gz"
        path.write_bytes(gzip.compress(bytes(header) + content.astype(np.uint8).tobytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in CODE.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    images = np.random.default_rng(0).integers(0, 256, (2600, 28, 28))
    images[1] = images[0]
    write(tmp_path, "train", images)
    write(tmp_path, "t10k", np.concatenate([images[:1] * 0, images[5:6], images[:1] * 0]))
    return tmp_path


def fashion(folder: Path, **settings: object) -> Workload:
    return define({"file": {"path": "workload.py", "settings": {"files": ".", **settings}}}, folder)


def test_an_image_is_in_one_split_and_the_test_decides(folder: Path) -> None:
    splits = load({"file": {"path": "workload.py", "settings": {"files": "."}}}, folder).splits
    assert splits.verdict.labels().tolist() == [0, 1]  # the third is the first again
    assert (len(splits.calibration), len(splits.search)) == (500, 2000)
    assert len(splits.train) == 2600 - 2500 - 2  # one image twice, one in the test too


def test_pixels_are_scaled_by_mean_and_deviation(folder: Path) -> None:
    images = fashion(folder).preprocess(np.full((1, 28, 28), 255, np.uint8))["images"]
    assert images.shape == (1, 1, 28, 28)
    assert images[0, 0, 0, 0] == pytest.approx((1 - 0.2860) / 0.3530)


def test_network_and_students_give_ten_logits(folder: Path) -> None:
    import torch

    workload = fashion(folder)
    networks = {"itself": workload.network, **workload.students()}
    sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in networks.items()}
    assert sizes == {"itself": 272_186, "narrow": 68_642, "shallow": 77_754, "small": 19_810}
    assert all(make()(torch.zeros(2, 1, 28, 28)).shape == (2, 10) for make in networks.values())


def test_augmented_images_are_mirrored_and_moved_only(folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    given = torch.rand(64, 1, 28, 28)
    augmented = fashion(folder).augment({"images": given})["images"]
    assert torch.equal(augmented.flatten(1).sort(1).values, given.flatten(1).sort(1).values)
    assert not torch.equal(augmented, given)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(WorkloadError, match=r"t10k-labels-idx1-ubyte\.gz cannot be read"):
        fashion(folder).data()
