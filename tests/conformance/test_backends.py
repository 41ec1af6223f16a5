"""What every backend keeps, on a convolutional network and on a transformer."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pareflow import network
from pareflow.compiler import Backend
from pareflow.hardware import probe
from pareflow.network import Form
from pareflow.workload import LoadedWorkload
from tests.conftest import Compiled, digests

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 0.1}
"""Of the largest output, by the precision that ran."""
UNLIKE = {
    "tensorrt": "kernels are chosen by timing them",
    "torch_compile": "the library holds paths of the folder it was compiled in",
}
"""Backends that make other bytes of the same network each time."""

pytestmark = pytest.mark.parametrize("name", ["images", "texts"])


@pytest.fixture
def compiled(compile_once: Callable[[Backend, str], Compiled], backend: Backend, name: str) -> Compiled:
    return compile_once(backend, name)


@pytest.fixture
def artifact(compiled: Compiled) -> Path:
    return compiled.folder


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
    session.run({key: array[::-1].copy() for key, array in first.items()})
    assert all(np.array_equal(answers[key], kept[key]) for key in answers)
    assert all(np.array_equal(first[key], given[key]) for key in first)


def test_source_is_untouched_and_artifact_stands_alone(
    backend: Backend, name: str, compiled: Compiled, load_tiny: Load, tmp_path: Path
) -> None:
    """The artifact is loaded from another folder after the network it came from is gone."""
    assert compiled.source_kept
    moved = shutil.copytree(compiled.folder, tmp_path / "moved")
    answers = backend.load(moved).run(load_tiny(name).example(2))
    network.check_outputs(answers, samples=2)


def test_compiling_twice_gives_the_same_bytes(
    backend: Backend, name: str, artifact: Path, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    """Of the answers, where `UNLIKE` says why its files differ."""
    (tmp_path / "again").mkdir()
    backend.compile(forms(name)[backend.form], tmp_path / "again")
    if backend.name not in UNLIKE:
        assert digests(artifact) == digests(tmp_path / "again")
    feeds = load_tiny(name).example(5)
    first, second = (backend.load(folder).run(feeds) for folder in (artifact, tmp_path / "again"))
    assert {key: array.tobytes() for key, array in first.items()} == {
        key: array.tobytes() for key, array in second.items()
    }


@pytest.mark.parametrize("threads", range(1, min(2, len(probe.cores())) + 1))
def test_what_ran_is_said(backend: Backend, name: str, artifact: Path, threads: int) -> None:
    asked = backend.model_copy(update={"threads": threads})
    ran = asked.load(artifact).ran()
    assert ran.threads == threads
    assert ran.runtime
    assert ran.version[0].isdigit()
    assert ran.precision in TOLERANCE
    assert ran.device.lower().startswith(getattr(backend, "device", "cpu"))


def test_network_given_as_onnx_answers_as_its_graph(
    backend: Backend, name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    """By way of the backend's own form; a torch network is what those of the form `torch` are for."""
    if backend.form == "torch" or backend != type(backend)():
        pytest.skip("once for each backend that has a way from onnx")
    source, workload = forms(name)["onnx"], load_tiny(name)
    feeds, given = workload.example(3), source
    for folder in ("made", "artifact"):
        (tmp_path / folder).mkdir()
    if backend.form != "onnx":
        given = tmp_path / "made"
        network.convert(source, backend.form, workload, given)
    backend.compile(given, tmp_path / "artifact")
    session = backend.load(tmp_path / "artifact")
    answers, expected = session.run(feeds), network.runner(source)(feeds)
    assert answers.keys() == expected.keys()
    for key, array in expected.items():
        error = np.abs(answers[key] - array).max() / np.abs(array).max()
        assert error <= TOLERANCE[session.ran().precision]
