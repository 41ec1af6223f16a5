"""The offline bundle: it runs on the runtime alone, says what is damaged, and is the same bytes each time."""

import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.compiler import CoreMl
from pareflow.compiler.environment import WorkerEnvironment
from pareflow.errors import BadOutputError, EnvironmentUnfitError, InputError, WorkloadError
from pareflow.serving import alone, bundle, distributions, runner
from pareflow.serving.model import PackagedModel, verified, write_manifest
from pareflow.stages.exporting import export
from pareflow.stages.registration import golden
from pareflow.variant import Step
from pareflow.workload import Arrays

Packaged = Callable[..., Path]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def exported(packaged: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The unpacked bundle of a tiny workload; not to be changed."""
    made: dict[str, Path] = {}

    def unpacked(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("exported")
            export(packaged(name), folder / "bundle.tar.gz", folder)
            with tarfile.open(folder / "bundle.tar.gz") as file:
                file.extractall(folder, filter="data")
            made[name] = folder / name
        return made[name]

    return unpacked


@pytest.fixture
def own(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    """The bundle of the images for one test to change."""
    return Path(shutil.copytree(exported("images"), tmp_path / "own"))


def run(folder: Path, *words: str, given: str | None = None) -> Done:
    """The bundle's runner in a fresh interpreter that sees nothing of this checkout."""
    command = [sys.executable, "-I", str(folder / "run.py"), *words]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, input=given, check=False)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images", "texts"])
def test_self_test_passes_on_numpy_and_onnxruntime_alone(name: str, exported: Callable[[str], Path]) -> None:
    """No pareflow of ours, no torch, no pydantic: nothing but the runtime's own closure can be imported."""
    folder = exported(name)
    modules = distributions.modules(distributions.closure(["numpy", "onnxruntime"]))
    assert not {"torch", "pydantic", "pareflow", "psutil", "onnx"} & set(modules)
    seen = bundle.self_test(folder, modules)
    assert {"code/pydantic.py", "code/pareflow/serving/model.py"} <= set(seen["files"])
    assert run(folder, "--self-test").returncode == 0


def test_what_is_shut_out_cannot_be_imported(tmp_path: Path) -> None:
    """The guard of the test above."""
    (tmp_path / "run.py").write_text("import torch")
    command = [sys.executable, "-I", alone.__file__, '["numpy"]', str(tmp_path / "run.py"), "seen.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr


def test_predictions_are_those_of_the_package(
    exported: Callable[[str], Path], packaged: Packaged, tmp_path: Path
) -> None:
    expected = golden(packaged("images"))
    np.save(tmp_path / "images.npy", np.asarray(expected["samples"], dtype=np.float32))
    (tmp_path / "images.json").write_text(json.dumps(expected["samples"]))
    done = run(exported("images"), str(tmp_path / "images.npy"), str(tmp_path / "images.json"))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [{"predictions": expected["predictions"]}] * 2


def test_labels_are_told_and_equal_requests_are_answered_from_the_cache(
    exported: Callable[[str], Path], packaged: Packaged
) -> None:
    expected = golden(packaged("texts"))
    line = json.dumps(expected["samples"])
    done = run(exported("texts"), "-", "--cache-mib", "1", given=f"{line}\n{line}\n{line}\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    names = ("b prevails", "a prevails")
    labels = [names[prediction] for prediction in expected["predictions"]]
    assert answers == [{"predictions": expected["predictions"], "labels": labels}] * 3
    assert "cache: 2 hits, 1 misses" in done.stderr


def test_labels_are_in_lists_as_the_predictions_are() -> None:
    """Of tokens, of which -1 stands for padding; what is no class has no name."""
    named = [["a", "b"], ["b", None], [], None, None]
    assert runner.named([[0, 1], [1, -1], [], 2, 0.5], ["a", "b"]) == named


def test_a_text_ends_with_its_line_alone(tmp_path: Path) -> None:
    """Not where Unicode has other ends of lines, as U+2028."""
    (tmp_path / "texts.txt").write_bytes("a\u2028b\x0bc\x85d\r\n\né\n".encode())
    assert [*runner.read(str(tmp_path / "texts.txt"))] == [["a\u2028b\x0bc\x85d", "", "é"]]


def test_what_an_input_would_be_answered_is_tested_too(own: Path) -> None:
    expected = golden(own / "package")
    (own / "labels.json").write_text('["first", "second"]')
    bundle.seal(own)
    assert run(own, "--self-test").returncode == 0
    done = run(own, "-", given=json.dumps(expected["samples"]) + "\n")
    labels = [{0: "first", 1: "second"}.get(prediction) for prediction in expected["predictions"]]
    assert json.loads(done.stdout) == {"predictions": expected["predictions"], "labels": labels}
    (own / "labels.json").write_text("no JSON")
    bundle.seal(own)
    done = run(own, "--self-test")
    assert (done.returncode, "JSONDecodeError" in done.stderr) == (1, True)


def test_an_input_that_cannot_be_read_is_told(exported: Callable[[str], Path]) -> None:
    for words, said in (
        (["images.csv"], "must end in .npy"),
        (["/absent.npy"], "/absent.npy"),
        ([], "usage"),
    ):
        done = run(exported("images"), *words)
        assert done.returncode != 0
        assert said in done.stderr


def test_requirements_are_exact_and_every_one_has_its_licence(exported: Callable[[str], Path]) -> None:
    folder = exported("images")
    pins = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert {"numpy", "onnxruntime", "protobuf"} <= set(pins)
    assert not {"torch", "pydantic", "pareflow", "psutil"} & set(pins)
    listed = json.loads((folder / "licences.json").read_text())
    assert [entry["name"] for entry in listed] == ["pareflow", *pins]
    assert {entry["name"]: entry["licence"] for entry in listed}["onnxruntime"] == "MIT License"
    assert not [entry for entry in listed if "not stated" in entry["licence"]]


def test_a_flipped_bit_or_a_missing_file_is_named(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """Of every file of the bundle."""
    whole = exported("texts")
    for path in (path for path in whole.rglob("*") if path.is_file()):
        name = path.relative_to(whole).as_posix()
        folder = Path(shutil.copytree(whole, tmp_path / "copy", dirs_exist_ok=True))
        flip(folder / name)
        assert [told for told in runner.damages(folder) if told.startswith(name)], name
        (folder / name).unlink()
        assert [told for told in runner.damages(folder) if told.startswith(name)], name
    assert runner.damages(whole) == []


@pytest.mark.parametrize("name", ["package/artifact/model.onnx", "requirements.txt", "checksums.sha256"])
def test_the_runner_of_a_damaged_bundle_names_the_file_and_exits_1(name: str, own: Path) -> None:
    flip(own / name)
    done = run(own, "--self-test")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {name} is not what was exported" in done.stderr
    (own / name).unlink()
    done = run(own, "--self-test")
    assert done.returncode == 1
    assert name in done.stderr


def resealed(package: Path, document: dict[str, Any]) -> None:
    """Write the manifest anew, as if the package had been made so."""
    (package / "model.json").unlink()
    write_manifest(package, {name: value for name, value in document.items() if name != "files"})


@pytest.mark.parametrize(
    ("part", "said"), [("outputs", "`output` differs by"), ("predictions", "for sample 3 it answers")]
)
def test_golden_answers_that_are_not_repeated_are_told(own: Path, part: str, said: str) -> None:
    """As where another processor rounds otherwise: all files are whole, and the answers differ."""
    document, answers = verified(own / "package"), golden(own / "package")
    changed = answers["outputs"]["output"] if part == "outputs" else answers["predictions"]
    changed[3] = [100.0] * 4 if part == "outputs" else changed[3] + 1
    (own / "package" / "golden.json").write_text(json.dumps(answers))
    resealed(own / "package", document)
    bundle.seal(own)
    done = run(own, "--self-test")
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize(("off", "within"), [(1.004, True), (math.nan, False), (1.1, False)])
def test_predictions_that_are_numbers_are_repeated_as_outputs_are(
    off: float, within: bool, workloads: Path, make_package: Packaged, tmp_path: Path
) -> None:
    """Another processor may round them otherwise; one that is not a number must be so there too."""
    scores = {"file": {"path": "whole_images.py", "settings": {"answers": "scores"}}}
    backend = Step("onnxruntime", {"threads": 1})
    made = make_package(scores, workloads, tmp_path / "store", backend, "scores")
    package = shutil.copytree(made, tmp_path / "package")
    document, answers = verified(package), golden(package)
    largest = max(answers["predictions"], key=lambda row: abs(row[0]))
    largest[0] *= off
    (package / "golden.json").write_text(json.dumps(answers))
    resealed(package, document)
    told = nullcontext() if within else pytest.raises(BadOutputError, match="repeat its golden predictions")
    with told:
        PackagedModel(package).check_golden()


class Labelled(PackagedModel):
    """A package whose network gives nothing, and its processing these predictions."""

    def __init__(self, expected: list[Any], found: np.ndarray) -> None:
        self._expected, self._found = expected, found

    def outputs(self, samples: Any) -> Arrays:
        return {}

    def postprocess(self, outputs: Any) -> np.ndarray:
        return self._found

    def golden(self) -> dict[str, Any]:
        return {"samples": [], "outputs": {}, "predictions": self._expected}


@pytest.mark.parametrize(("changed", "within"), [(1, True), (99, True), (500, False)])
def test_a_label_of_many_in_a_sample_may_be_nearly_a_tie(changed: int, within: bool) -> None:
    """As of a pixel whose two best classes differ by less than outputs may."""
    pixels = np.zeros((2, 100, 100), int)
    found = pixels.copy()
    found[1].flat[:changed] = 1
    with nullcontext() if within else pytest.raises(BadOutputError, match="for sample 1 it answers"):
        Labelled(pixels.tolist(), found).check_golden()


@pytest.mark.parametrize(
    ("expected", "found", "within"),
    [
        ([[[1.0, 2.0]], []], [[[1.001, 2.0]], []], True),
        ([[[1.0, 2.0]], []], [[[1.1, 2.0]], []], False),
        ([[[1.0, 2.0]], []], [[[1.0, 2.0], [3.0, 4.0]], []], False),
        ([["cat", "dog"], ["cat"]], [["cat", "dog"], ["cat"]], True),
        ([["cat", "dog"], ["cat"]], [["cat", "cat"], ["cat"]], False),
        ([[[1], [2, 3]], []], [[[1], [2, 3]], []], True),
        ([[[1], [2, 3]], []], [[[1], [2, 4]], []], False),
    ],
)
def test_boxes_are_repeated_as_outputs_are_and_names_exactly(
    expected: list[Any], found: list[Any], within: bool
) -> None:
    """In lists, since samples have not as many."""
    objects = np.empty(len(found), object)
    objects[:] = found
    with nullcontext() if within else pytest.raises(BadOutputError, match="for sample 0 it answers"):
        Labelled(expected, objects).check_golden()


def test_predictions_in_a_list_are_packaged_and_answered_as_an_array(
    workloads: Path, make_package: Packaged, tmp_path: Path
) -> None:
    listed = {"file": {"path": "whole_images.py", "settings": {"answers": "list"}}}
    backend = Step("onnxruntime", {"threads": 1})
    package = make_package(listed, workloads, tmp_path / "store", backend, "listed")
    model = PackagedModel(package)
    model.check_golden()
    answered = model.predict(np.asarray(golden(package)["samples"], dtype=np.uint8))
    assert answered.tolist() == golden(package)["predictions"]


def test_what_is_not_installed_is_told(own: Path) -> None:
    with (own / "requirements.txt").open("a") as file:
        file.write("no-such-runtime==1.0\n")
    bundle.seal(own)
    done = run(own, "--self-test")
    assert done.returncode == 1
    assert "no-such-runtime==1.0 must be installed" in done.stderr


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_the_same_package_gives_the_same_bytes(packaged: Packaged, tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    documents = [export(packaged("images"), path, tmp_path) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert documents[0]["sha256"] == documents[1]["sha256"]
    if suffix == ".zip":
        with zipfile.ZipFile(paths[0]) as file:
            names = file.namelist()
    else:
        with tarfile.open(paths[0]) as archive:
            names = archive.getnames()
            assert {(entry.mtime, entry.uid, entry.uname) for entry in archive} == {(0, 0, "")}
    assert names == [f"images/{name}" for name in documents[0]["files"]]


def test_coreutils_read_the_checksums(exported: Callable[[str], Path]) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    command = ["sha256sum", "--check", "--quiet", "--strict", "checksums.sha256"]
    done = subprocess.run(command, cwd=exported("images"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_openvino_goes_offline_too(packaged: Packaged, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    package = packaged("images", Step("openvino", {"threads": 1}))
    document = export(package, tmp_path / "bundle.zip", tmp_path)
    names = {pin.partition("==")[0] for pin in document["requirements"]}
    assert "openvino" in names
    assert not {"onnxruntime", "psutil", "torch"} & names


def test_a_backend_that_runs_in_torch_cannot_go_offline(packaged: Packaged, tmp_path: Path) -> None:
    package = packaged("images", Step("torch_eager", {"threads": 1}))
    with pytest.raises(InputError, match="`torch_eager` does not: it runs in torch"):
        export(package, tmp_path / "bundle.zip", tmp_path)
    assert list(tmp_path.glob("bundle*")) == []


@pytest.mark.parametrize("name", ["bundle.rar", "absent/bundle.zip", "folder.zip", "file/bundle.zip"])
def test_an_archive_that_cannot_be_written_is_an_input_error(
    packaged: Packaged, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file").write_text("where a folder is asked for")
    with pytest.raises(InputError):
        export(packaged("images"), tmp_path / name, tmp_path)


def test_a_damaged_package_is_not_exported(packaged: Packaged, tmp_path: Path) -> None:
    package = Path(shutil.copytree(packaged("images"), tmp_path / "package"))
    (package / "artifact" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="as it was packaged"):
        export(package, tmp_path / "bundle.zip", tmp_path)


def test_processing_that_imports_what_no_one_named_is_told(packaged: Packaged, tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("manifest.json")
    package = Path(shutil.copytree(packaged("images"), tmp_path / "package", ignore=ignore))
    document = verified(package)
    code = package / "workload" / "images.py"
    code.write_text(code.read_text().replace("import numpy as np", "import numpy as np\nimport scipy.stats"))
    resealed(package, document)
    with pytest.raises(WorkloadError, match=r"'scipy'.*serving_requires"):
        export(package, tmp_path / "bundle.zip", tmp_path)


def test_other_versions_than_those_it_was_judged_with_are_refused(packaged: Packaged, tmp_path: Path) -> None:
    package = Path(shutil.copytree(packaged("images"), tmp_path / "package"))
    resealed(package, {**verified(package), "requirements": ["numpy==1.0"]})
    with pytest.raises(EnvironmentUnfitError, match=r"numpy is .* here, and was 1\.0"):
        export(package, tmp_path / "bundle.zip", tmp_path)


WORKERS = [("litert", "ai-edge-litert"), ("executorch", "executorch"), ("tvm", "apache-tvm")]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "runtime"), WORKERS)
def test_worker_goes_offline_in_its_own_interpreter(
    backend: str, runtime: str, packaged: Packaged, tmp_path: Path
) -> None:
    """From the archive, with the interpreter that has the runtime and numpy, and no pareflow."""
    package = packaged("images", Step(backend, {"threads": 1}))
    document = export(package, tmp_path / "bundle.tar.gz", tmp_path)
    names = {pin.partition("==")[0] for pin in document["requirements"]}
    assert {"numpy", runtime} <= names
    assert not {"pareflow", "pydantic", "psutil", "onnxruntime"} & names
    with tarfile.open(tmp_path / "bundle.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    environment = WorkerEnvironment(backend)
    expected = golden(package)
    np.save(tmp_path / "images.npy", np.asarray(expected["samples"], dtype=np.float32))
    tested, asked = (
        subprocess.run(
            [environment.python, "-I", tmp_path / "images" / "run.py", *words],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        for words in (["--self-test"], [str(tmp_path / "images.npy")])
    )
    assert tested.returncode == 0, tested.stderr
    assert "every golden output is repeated" in tested.stdout
    assert json.loads(asked.stdout.splitlines()[-1]) == {"predictions": expected["predictions"]}
    answers = json.loads((tmp_path / "images" / "package" / "golden.json").read_text())
    answers["outputs"]["output"][3] = [100.0] * 4
    (tmp_path / "images" / "package" / "golden.json").write_text(json.dumps(answers))
    resealed(tmp_path / "images" / "package", verified(package))
    bundle.seal(tmp_path / "images")
    wrong = subprocess.run(
        [environment.python, "-I", tmp_path / "images" / "run.py", "--self-test"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert "`output` differs by" in wrong.stderr


def test_worker_asks_for_no_more_than_its_environment_holds(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfitError, match=r"numpy is not in .*no more than its environment's lock"):
        distributions.closure(["numpy"], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="this is macOS, where Core ML predicts")
def test_core_ml_is_bundled_and_says_that_it_predicts_on_macos_only(
    packaged: Packaged, forms: Callable[[str], Any], tmp_path: Path
) -> None:
    package = Path(
        shutil.copytree(
            packaged("images"), tmp_path / "package", ignore=shutil.ignore_patterns("manifest.json")
        )
    )
    shutil.rmtree(package / "artifact")
    (package / "artifact").mkdir()
    CoreMl().compile(forms("images")["exported"], package / "artifact")
    resealed(package, {**told(package), "backend": CoreMl().step.to_json()})
    document = export(package, tmp_path / "bundle.tar.gz", tmp_path)
    assert "code/pareflow/compiler/workers/coreml.py" in document["files"]
    with tarfile.open(tmp_path / "bundle.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    done = subprocess.run(
        [WorkerEnvironment("coreml").python, "-I", tmp_path / "images" / "run.py", "--self-test"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Core ML predictions must be asked for on macOS" in done.stderr


def told(package: Path) -> dict[str, Any]:
    """What the manifest says, whatever files are there."""
    document: dict[str, Any] = json.loads((package / "model.json").read_text())
    return document


def test_what_runs_alone_is_there_beside_the_backport_of_importlib_metadata() -> None:
    """The backport takes `find_distributions` away from Python's own finder."""
    pytest.importorskip("importlib_metadata")
    words = "import importlib_metadata; from pareflow.serving import alone; alone.Only.find_distributions()"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", words], check=True, env={**os.environ, "PYTHONPATH": root})
