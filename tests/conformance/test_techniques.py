"""What every technique keeps, on a convolutional network and on a transformer."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pareflow import network
from pareflow.catalog import BACKENDS
from pareflow.compiler import Backend
from pareflow.errors import PareflowError, UnsuitableError
from pareflow.model import Technique
from pareflow.network import Form
from pareflow.variant import file_digest
from pareflow.workload import Arrays, LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
Suited = Callable[[Technique, str], str]
Timed = Callable[[Technique, str], LoadedWorkload]

pytestmark = [
    pytest.mark.parametrize("given", ["images", "texts"]),
    # what the libraries under the techniques say about themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="session")
def timed(load_tiny: Load, tmp_path_factory: pytest.TempPathFactory) -> Timed:
    """The tiny workload, as a technique is given it.

    One that `measures` finds the timings of its first application, and nothing else of it: they are all that
    may differ from run to run.
    """
    first: dict[str, Path] = {}

    def workload(technique: Technique, name: str) -> LoadedWorkload:
        if not technique.measures:
            return load_tiny(name)
        scratch = tmp_path_factory.mktemp("scratch")
        for file in first.setdefault(key_of(technique, name), scratch).iterdir():
            if file.is_file():
                shutil.copy2(file, scratch)
        return replace(load_tiny(name), scratch=scratch)

    return workload


@pytest.fixture(scope="session")
def suited(forms: Forms, timed: Timed) -> Suited:
    """The name of the network that a technique is held to: the given one, or, where it refuses that one for
    what it lacks, the `encoder`, which has more parts, or, where its settings are for images, the images'.
    The last of them must do."""
    found: dict[str, str] = {}

    def find(technique: Technique, given: str) -> str:
        key = key_of(technique, given)
        if key not in found:
            names = list(dict.fromkeys((given, "encoder", "images")))
            found[key] = next(name for name in names if suits(technique, name, last=name == names[-1]))
        return found[key]

    def suits(technique: Technique, name: str, *, last: bool) -> bool:
        try:
            technique.apply(network.load(technique.form, forms(name)[technique.form]), timed(technique, name))
        except UnsuitableError:
            if last:
                raise
            return False
        return True

    return find


@pytest.fixture
def name(technique: Technique, given: str, suited: Suited) -> str:
    """The tiny network that this test is about."""
    found = suited(technique, given)
    if found == "images" != given:
        pytest.skip("settings for images alone: the images' row holds them")
    return found


def applied(technique: Technique, name: str, forms: Forms, timed: Timed, into: Path) -> Path:
    """A folder with what the technique makes of the tiny network."""
    into.mkdir(exist_ok=True)
    source = network.load(technique.form, forms(name)[technique.form])
    network.save(technique.apply(source, timed(technique, name)), technique.gives, into)
    return into


def digests(folder: Path) -> dict[str, str]:
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
    technique: Technique, name: str, forms: Forms, load_tiny: Load, timed: Timed, tmp_path: Path
) -> None:
    made = applied(technique, name, forms, timed, tmp_path / "made")
    feeds = load_tiny(name).example(7)
    before = network.run_torch(network.load("torch", forms(name)["torch"]), feeds)
    after = outputs(made, feeds, tmp_path / "compiled")
    assert {key: array.shape for key, array in after.items()} == {
        key: array.shape for key, array in before.items()
    }
    network.check_outputs(after, samples=7)


def test_input_is_untouched(
    technique: Technique, name: str, forms: Forms, timed: Timed, tmp_path: Path
) -> None:
    """Neither the file it was read from nor the network in memory."""
    folder = forms(name)[technique.form]
    on_disk = digests(folder)
    loaded = network.load(technique.form, folder)
    for moment in ("before", "after"):
        (tmp_path / moment).mkdir()
        network.save(loaded, technique.form, tmp_path / moment)
        if moment == "before":
            technique.apply(loaded, timed(technique, name))
    assert digests(tmp_path / "before") == digests(tmp_path / "after")
    assert digests(folder) == on_disk


def test_same_seed_gives_the_same_bytes_in_any_process(
    technique: Technique, name: str, forms: Forms, timed: Timed, tmp_path: Path, elsewhere: "Elsewhere"
) -> None:
    here = digests(applied(technique, name, forms, timed, tmp_path / "here"))
    again = digests(applied(technique, name, forms, timed, tmp_path / "again"))
    assert here == again
    assert elsewhere(technique, name) == here


def test_result_survives_saving_and_loading(
    technique: Technique, name: str, forms: Forms, load_tiny: Load, timed: Timed, tmp_path: Path
) -> None:
    made = applied(technique, name, forms, timed, tmp_path / "made")
    (tmp_path / "again").mkdir()
    network.save(network.load(technique.gives, made), technique.gives, tmp_path / "again")
    feeds = load_tiny(name).example(5)
    first = outputs(made, feeds, tmp_path / "one")
    second = outputs(tmp_path / "again", feeds, tmp_path / "two")
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_verdict_split_is_not_needed(
    technique: Technique, name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    """It may look at train, calibration and search; asked for the verdict, the workload refuses."""
    workload = load_tiny(name)
    assert workload.opened == {"train", "calibration", "search"}
    try:
        technique.apply(network.load(technique.form, forms(name)[technique.form]), workload)
    except PareflowError as error:
        assert "verdict split" not in str(error)  # noqa: PT017 (it may refuse, but not for this)


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
    suited: Suited,
    timed: Timed,
) -> Elsewhere:
    """The digests of what every collected technique makes, in a process with other hashes, another clock."""
    asked = {}
    for item in request.session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "technique" in parameters and "given" in parameters and item.get_closest_marker("skip") is None:
            technique = parameters["technique"]
            name = suited(technique, parameters["given"])
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
    return lambda technique, name: answers[key_of(technique, name)]


def key_of(technique: Technique, name: str) -> str:
    return f"{technique.step.label} on {name}"
