"""What every technique keeps, on a convolutional network and on a transformer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pareflow import network
from pareflow.catalog import BACKENDS
from pareflow.compiler import Backend
from pareflow.errors import UnsuitableError
from pareflow.model import Technique
from pareflow.network import Form
from pareflow.variant import file_digest
from pareflow.workload import Arrays, LoadedWorkload
from tests.conftest import Once

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
Make = Callable[[Technique, str], "Made"]
Timed = Callable[[Technique, str], LoadedWorkload]
Digests = dict[str, str]
"""Of each file of a folder."""

pytestmark = [
    pytest.mark.parametrize("given", ["images", "texts"]),
    # what the libraries under the techniques say about themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="session")
def timed(load_tiny: Load, forms: Forms, once: Once, tmp_path_factory: pytest.TempPathFactory) -> Timed:
    """The tiny workload, as a technique is given it.

    One that `measures` finds the timings of an earlier application, and nothing else of it: they are all that
    may differ from run to run.
    """

    def workload(technique: Technique, name: str) -> LoadedWorkload:
        if not technique.measures:
            return load_tiny(name)
        scratch = tmp_path_factory.mktemp("scratch")
        found = once(f"timings of {key_of(technique, name)}", lambda: timings(technique, name))
        for file, content in found.items():
            (scratch / file).write_bytes(content)
        return replace(load_tiny(name), scratch=scratch)

    def timings(technique: Technique, name: str) -> dict[str, bytes]:
        scratch = tmp_path_factory.mktemp("timings")
        source = network.load(technique.form, forms(name)[technique.form])
        technique.apply(source, replace(load_tiny(name), scratch=scratch))
        return {file.name: file.read_bytes() for file in scratch.iterdir() if file.is_file()}

    return workload


@dataclass(frozen=True)
class Made:
    """What a technique made of a tiny network: once, for all tests that only look at it."""

    name: str
    """The network's workload."""
    folder: Path
    before: Digests
    """Of the network that it was given: its files, and what saving it gave."""
    after: Digests
    """The same, once the technique had been applied."""


@pytest.fixture(scope="session")
def make(forms: Forms, timed: Timed, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Apply a technique, once, to the given network, or, where it refuses that one for what it lacks, to the
    `encoder`, which has more parts, or to `bert`, whose parts are the field's, or, where its settings are for
    images, to the images'. One must do."""
    found: dict[str, Made] = {}

    def made(technique: Technique, given: str) -> Made:
        key = key_of(technique, given)
        if key not in found:
            names = list(dict.fromkeys((given, "encoder", "bert", "images")))
            found[key] = next(filter(None, (attempt(technique, name, names[-1]) for name in names)))
        return found[key]

    def attempt(technique: Technique, name: str, last: str) -> Made | None:
        folder = forms(name)[technique.form]
        source = network.load(technique.form, folder)

        def state() -> Digests:
            saved = tmp_path_factory.mktemp("source")
            network.save(source, technique.form, saved)
            return {**digests(folder), **{f"saved {key}": value for key, value in digests(saved).items()}}

        before = state()
        try:
            changed = technique.apply(source, timed(technique, name))
        except UnsuitableError:
            if name == last:
                raise
            return None
        into = tmp_path_factory.mktemp("made")
        network.save(changed, technique.gives, into)
        return Made(name, into, before, state())

    return made


@pytest.fixture
def made(technique: Technique, given: str, make: Make) -> Made:
    """What this test is about."""
    found = make(technique, given)
    if found.name == "images" != given:
        pytest.skip("settings for images alone: the images' row holds them")
    return found


def digests(folder: Path) -> Digests:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def outputs(folder: Path, feeds: Arrays, into: Path) -> Arrays:
    """What a backend of the network's form answers."""
    form = network.form_of(folder)
    backend = next(cls for cls in BACKENDS.values() if getattr(cls, "form") == form)()  # noqa: B009
    assert isinstance(backend, Backend)
    into.mkdir()
    backend.compile(folder, into)
    return backend.load(into).run(feeds)


def test_shape_is_kept_and_answers_are_finite(
    made: Made, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    feeds = load_tiny(made.name).example(7)
    before = network.run_torch(network.load("torch", forms(made.name)["torch"]), feeds)
    after = outputs(made.folder, feeds, tmp_path / "compiled")
    assert {key: array.shape for key, array in after.items()} == {
        key: array.shape for key, array in before.items()
    }
    network.check_outputs(after, samples=7)


def test_input_is_untouched(made: Made) -> None:
    """Neither the file it was read from nor the network in memory."""
    assert made.before == made.after


def test_same_seed_gives_the_same_bytes_in_any_process(
    technique: Technique, made: Made, elsewhere: "Elsewhere"
) -> None:
    assert elsewhere(technique, made.name) == digests(made.folder)


def test_result_survives_saving_and_loading(
    technique: Technique, made: Made, load_tiny: Load, tmp_path: Path
) -> None:
    (tmp_path / "again").mkdir()
    network.save(network.load(technique.gives, made.folder), technique.gives, tmp_path / "again")
    feeds = load_tiny(made.name).example(5)
    first = outputs(made.folder, feeds, tmp_path / "one")
    second = outputs(tmp_path / "again", feeds, tmp_path / "two")
    assert all(np.array_equal(first[key], second[key]) for key in first)


Elsewhere = Callable[[Technique, str], dict[str, str]]
SCRIPT = """
import json, sys, tempfile
from dataclasses import replace
from pathlib import Path
import pareflow
from pareflow import network
from pareflow.catalog import TECHNIQUES, find
from pareflow.variant import Step, file_digest
from pareflow.workload import load

answers = {}
for key, (step, name, folder, scratch) in json.loads(sys.argv[2]).items():
    technique = find(TECHNIQUES, Step.from_json(step), "technique")
    workload = load({"file": {"path": f"{name}.py"}}, Path(sys.argv[1]))
    workload = replace(workload, scratch=scratch and Path(scratch))
    with tempfile.TemporaryDirectory() as into:
        changed = technique.apply(network.load(technique.form, Path(folder)), workload)
        network.save(changed, technique.gives, Path(into))
        answers[key] = {path.name: file_digest(path) for path in sorted(Path(into).iterdir())}
print("\\n" + json.dumps(answers))
"""


@pytest.fixture(scope="session")
def elsewhere(
    request: pytest.FixtureRequest,
    workloads: Path,
    checkout: Path,
    forms: Forms,
    make: Make,
    timed: Timed,
    once: Once,
) -> Elsewhere:
    """The digests of what every collected technique makes, in a process with other hashes, another clock: one
    for all of pytest's."""
    answers = once("elsewhere", lambda: _elsewhere(request, workloads, checkout, forms, make, timed))
    return lambda technique, name: answers[key_of(technique, name)]


def _elsewhere(
    request: pytest.FixtureRequest, workloads: Path, checkout: Path, forms: Forms, make: Make, timed: Timed
) -> dict[str, dict[str, str]]:
    asked = {}
    for item in request.session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "technique" in parameters and "given" in parameters and item.get_closest_marker("skip") is None:
            technique = parameters["technique"]
            name = make(technique, parameters["given"]).name
            folder = str(forms(name)[technique.form])
            scratch = str(timed(technique, name).scratch) if technique.measures else None
            asked[key_of(technique, name)] = (technique.step.to_json(), name, folder, scratch)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(workloads), json.dumps(asked)],
        cwd=checkout,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def key_of(technique: Technique, name: str) -> str:
    return f"{technique.step.label} on {name}"
