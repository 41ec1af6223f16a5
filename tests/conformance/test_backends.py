"""What every backend keeps, on a convolutional network and on a transformer."""

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pareflow import network
from pareflow.compiler import Backend
from pareflow.hardware import probe
from pareflow.network import Form
from pareflow.variant import file_digest
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 0.1}
"""Of the largest output, by the precision that ran."""

pytestmark = pytest.mark.parametrize("name", ["images", "texts"])


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def compiled(forms: Forms, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Backend, str], Path]:
    """The artifact of a backend and a network: compiled once, for some take a minute."""

    @functools.cache
    def made(backend: Backend, name: str) -> Path:
        folder = tmp_path_factory.mktemp("artifact")
        backend.compile(forms(name)[backend.form], folder)
        return folder

    return made


@pytest.fixture
def artifact(backend: Backend, name: str, compiled: Callable[[Backend, str], Path]) -> Path:
    """Not to be changed."""
    return compiled(backend, name)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_answers_agree_with_torch_eager(
    backend: Backend, name: str, artifact: Path, forms: Forms, load_tiny: Load, batch_size: int
) -> None:
    feeds = load_tiny(name).example(batch_size)
    expected = network.run_torch(network.load("torch", forms(name)["torch"]), feeds)
    session = backend.load(artifact)
    answers = session.run(feeds)
    assert answers.keys() == expected.keys()
    for key, array in expected.items():
        assert answers[key].shape == array.shape
        error = np.abs(answers[key] - array).max() / np.abs(array).max()
        assert error <= TOLERANCE[session.ran().precision]


def test_answers_are_the_callers_to_keep(
    backend: Backend, name: str, artifact: Path, load_tiny: Load
) -> None:
    """A later request changes neither an earlier answer nor the inputs."""
    session = backend.load(artifact)
    first, second = load_tiny(name).example(3), load_tiny(name).example(6)
    given = {key: array.copy() for key, array in first.items()}
    answers = session.run(first)
    kept = {key: array.copy() for key, array in answers.items()}
    session.run(second)
    session.run({key: np.zeros_like(array) for key, array in first.items()})
    assert all(np.array_equal(answers[key], kept[key]) for key in answers)
    assert all(np.array_equal(first[key], given[key]) for key in first)


def test_source_is_untouched_and_artifact_stands_alone(
    backend: Backend, name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    """The artifact is loaded from another folder after the network it came from is gone."""
    source = shutil.copytree(forms(name)[backend.form], tmp_path / "source")
    before = digests(source)
    (tmp_path / "artifact").mkdir()
    backend.compile(source, tmp_path / "artifact")
    assert digests(source) == before
    shutil.rmtree(source)
    moved = shutil.move(tmp_path / "artifact", tmp_path / "moved")
    answers = backend.load(Path(moved)).run(load_tiny(name).example(2))
    network.check_outputs(answers, samples=2)


def test_compiling_twice_gives_the_same_bytes(
    backend: Backend, name: str, artifact: Path, forms: Forms, tmp_path: Path
) -> None:
    (tmp_path / "again").mkdir()
    backend.compile(forms(name)[backend.form], tmp_path / "again")
    assert digests(artifact) == digests(tmp_path / "again")


@pytest.mark.parametrize("threads", range(1, min(2, len(probe.cores())) + 1))
def test_what_ran_is_said(backend: Backend, name: str, artifact: Path, threads: int) -> None:
    asked = backend.model_copy(update={"threads": threads})
    ran = asked.load(artifact).ran()
    assert ran.threads == threads
    assert ran.runtime
    assert ran.version[0].isdigit()
    assert ran.precision in TOLERANCE
    assert ran.device.lower() == "cpu"
