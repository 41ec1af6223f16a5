"""The workload of `configs/sentiment`, on files of three reviews each."""

from pathlib import Path

import numpy as np
import pytest

from pareflow.errors import WorkloadError
from pareflow.workload import Workload, define, load

CODE = Path(__file__).parents[2] / "configs" / "sentiment"
SETTINGS = {"phrases": "train.tsv", "sentences": "."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in CODE.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "train.tsv").write_text('sentence\tlabel\na good film \t1\nbad , "bad film \t0\nshared\t1\n')
    development = [f"{n % 2} development {n}\n" for n in range(210)]
    (tmp_path / "stsa.binary.dev").write_text("".join(development) + "1 shared\n")
    (tmp_path / "stsa.binary.test").write_text("1 a  good one\n0 brûlée\n1 development 3\n")
    return tmp_path


def sentiment(folder: Path, **settings: object) -> Workload:
    return define({"file": {"path": "workload.py", "settings": SETTINGS | settings}}, folder)


def test_a_text_is_in_one_split_and_the_verdict_is_the_published_test(folder: Path) -> None:
    splits = load({"file": {"path": "workload.py", "settings": SETTINGS}}, folder).splits
    assert list(splits.verdict.samples) == ["a good one", "brûlée", "development 3"]
    assert list(splits.train.samples) == ["a good film", 'bad , "bad film']
    assert splits.train.labels().tolist() == [1, 0]
    assert (len(splits.calibration), len(splits.search)) == (200, 10)  # 211, one of them in the test


def test_words_are_numbered_by_frequency_and_new_ones_are_unknown(folder: Path) -> None:
    """film twice; then once each, by the alphabet: `"bad`, `,`, a, bad, good, shared."""
    workload = sentiment(folder)
    words = workload.preprocess(["a GOOD film", "a new film is a good bad film"])["words"]
    assert words.dtype == np.int64
    assert words.tolist() == [[5, 7, 2, 0, 0, 0, 0, 0], [5, 1, 2, 1, 5, 7, 6, 2]]
    assert workload.preprocess(["film"])["words"].tolist() == [[2, 0, 0, 0, 0]]


def test_network_and_students_take_any_length(folder: Path) -> None:
    import torch

    workload = sentiment(folder, width=12, filters=6)
    for network in (workload.network(), *(make() for make in workload.students().values())):
        for text in ("film", "a good film is a good film"):
            words = torch.from_numpy(workload.preprocess([text, text])["words"])
            assert network(words).shape == (2, 2)


def test_students_weights_are_drawn_anew(folder: Path) -> None:
    """Whoever makes one seeds torch: students by other seeds are others."""
    make = sentiment(folder, width=12, filters=6).students()["third"]
    one, other = (network.get_parameter("classifier.weight") for network in (make(), make()))
    assert not one.equal(other)


def test_packed_processing_needs_no_data(folder: Path, tmp_path: Path) -> None:
    workload, packed = sentiment(folder), tmp_path / "packed"
    packed.mkdir()
    step = workload.pack(packed)
    for file in folder.glob("*.py"):
        (packed / file.name).write_text(file.read_text())
    again = define(step.to_json(), packed)
    texts = ["a good film", "bad , brûlée"]
    assert again.preprocess(texts)["words"].tolist() == workload.preprocess(texts)["words"].tolist()
    assert again.postprocess({"output": np.asarray([[0.1, 0.9], [2.0, 1.0]])}).tolist() == [1, 0]


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "stsa.binary.dev").unlink()
    with pytest.raises(WorkloadError, match=r"stsa\.binary\.dev cannot be read"):
        sentiment(folder).data()
