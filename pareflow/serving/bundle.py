"""The offline bundle: a package with all that runs it but the runtime itself.

run.py             the runner: `python run.py INPUT …`, `python run.py --self-test`
requirements.txt   exact pins of the runtime and of what it needs
package/           the registered package as it is: artifact, processing, golden samples, verdict
code/              the few modules of pareflow that it runs, and a stand-in for pydantic; of a worker backend
                   the worker's own files, which run in the bundle's interpreter
labels.json        the names of the classes, where the workload has them
licences.json      of every distribution that is asked for; LICENSE: of the modules in code/
bundle.json        what this is
checksums.sha256   of every other file; `sha256sum -c` reads it
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pareflow
from pareflow.catalog import BACKENDS, WORKLOADS, Member, unknown
from pareflow.compiler.worker import WorkerBackend
from pareflow.errors import (
    BadOutputError,
    EnvironmentUnfitError,
    InputError,
    SpecError,
    TimedOutError,
    WorkloadError,
)
from pareflow.serving import alone, distributions, inprocess, runner, standin
from pareflow.serving.model import verified
from pareflow.store import MANIFEST
from pareflow.variant import Step, file_digest
from pareflow.workload import define

FORMAT = 1
SECONDS = 600
"""The most that a self-test may take."""
REFUSAL = f"error: {EnvironmentUnfitError.__name__}: "
"""How a self-test says that it must run elsewhere."""

_CODE = Path(str(pareflow.__file__)).parent
_BARE = ("", "compiler", "serving")
"""Packages whose own `__init__` names every member: in a bundle it is empty."""
_BARE_TEXT = '"""Of this package, what a bundle runs."""\n'

README = """\
An offline bundle of `{name}`, made by `pareflow export`.

    python3 -m venv venv && venv/bin/pip install --no-deps -r requirements.txt   # or from wheels at hand
    venv/bin/python run.py --self-test     # every file whole, every golden output repeated: exit status 0
    venv/bin/python run.py INPUT           # a .npy, .json or .txt file; - for a JSON list per line
    venv/bin/python run.py - --cache-mib 16   # answers to equal requests are kept

It needs Python {python} or later. It was judged on {processor}; elsewhere, judge it again.
"""


def check_backend(package: Path) -> None:
    """Raises: InputError where the runtime of a package cannot go with it."""
    step = Step.from_json(verified(package)["backend"])
    cls = BACKENDS.get(step.name)
    if cls is None:
        raise SpecError(f"the backend '{step.name}'", [unknown(step.name, BACKENDS, "backend")])
    if "torch" in cls.requires:
        raise InputError(
            "an offline bundle must hold a model whose runtime stands alone",
            f"`{step.name}` does not: it runs in torch, with the classes of the user's own network",
            "Export a variant of onnxruntime, openvino or litert",
        )


def describe(folder: str) -> dict[str, Any]:
    """For a process of its own: what the packaged workload says of itself."""
    package = Path(folder)
    definition = define(verified(package)["workload"], package / "workload")
    names = definition.class_names()
    return {
        "serving_requires": list(definition.serving_requires),
        "class_names": None if names is None else list(names),
    }


def assemble(package: Path, described: Mapping[str, Any], into: Path) -> dict[str, Any]:
    """Write the bundle of a package into the folder `into`, and self-test it there; its `bundle.json`.

    The self-test runs where nothing can be imported but what requirements.txt names, in the worker's
    interpreter where the backend has one; the modules of pareflow that it imports are those that the bundle
    holds. Where the runtime does not predict here (Core ML), saying so is the test.
    Raises: EnvironmentUnfitError, MissingExtraError, WorkloadError, BadOutputError, TimedOutError.
    """
    document = verified(package)
    backend = BACKENDS[Step.from_json(document["backend"]).name]
    shutil.copytree(package, into / "package", ignore=shutil.ignore_patterns(MANIFEST))
    shutil.copy(runner.__file__, into / "run.py")
    _write_code(into / "code", backend, stand_in="pydantic" not in described["serving_requires"])
    runs = _interpreter(backend)
    if described["class_names"] is not None:
        (into / "labels.json").write_text(json.dumps(described["class_names"], indent=1))
    names = [*_asked_for(document), *described["serving_requires"]]
    about = _about(document)
    for _ in range(2):  # with all of pareflow's modules, then with those alone that were imported
        versions = _write_texts(into, about, names, document, runs)
        seen = self_test(into, distributions.modules(versions, runs.packages), runs)
        _keep_only(into / "code", {into / file for file in seen["files"]} | _worker_files(into, backend))
    return about


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What runs a bundle here: where its distributions lie, and why it cannot predict, where it cannot."""

    python: Path
    packages: Path | None = None
    elsewhere: str | None = None


OWN = Interpreter(Path(sys.executable))


def _interpreter(backend: type[Member]) -> Interpreter:
    """The one of the worker environment, made where it is not there. Raises: MissingExtraError."""
    if not issubclass(backend, WorkerBackend):
        return OWN
    environment = backend.environment()
    return Interpreter(environment.ensure(), environment.packages, backend.unavailable())


def _worker_files(bundle: Path, backend: type[Member]) -> set[Path]:
    """The worker's files in a bundle, also those that only its own platform imports."""
    if not issubclass(backend, WorkerBackend):
        return set()
    folder = bundle / "code" / "pareflow" / "compiler" / "workers"
    return {folder / "__init__.py", *(folder / path.name for path in backend.files())}


def self_test(bundle: Path, modules: list[str], runs: Interpreter = OWN) -> dict[str, list[str]]:
    """The bundle's own self-test, where these are all top-level modules that can be imported.

    Which of them, and which of its own files, it does import.
    Raises: WorkloadError where more is needed, BadOutputError where it fails otherwise, TimedOutError.
    """
    with tempfile.TemporaryDirectory(prefix="pareflow-") as folder:
        seen = Path(folder) / "seen.json"
        command = [str(runs.python), "-I", "-W", "ignore", alone.__file__]
        try:
            done = subprocess.run(
                [*command, json.dumps(modules), str(bundle / "run.py"), str(seen)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            must, found = f"a bundle's self-test must end within {SECONDS} s", "it was still running"
            raise TimedOutError(must, found, "Export a smaller model") from error
        said = done.stderr.strip() or done.stdout.strip()
        if done.returncode != 0 and not (runs.elsewhere and REFUSAL in said):
            raise _failure(said)
        imported: dict[str, list[str]] = json.loads(seen.read_text())
        return imported


def seal(bundle: Path) -> dict[str, str]:
    """Write the checksum of every other file, and one of the checksums themselves; the sha256 by name."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != runner.CHECKSUMS)
    digests = {path.relative_to(bundle).as_posix(): file_digest(path) for path in files}
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in digests.items())
    own = hashlib.sha256(lines.encode()).hexdigest()
    (bundle / runner.CHECKSUMS).write_text(f"{lines}{runner.SEAL}{own}\n")
    return digests


def _about(document: Mapping[str, Any]) -> dict[str, Any]:
    backend, workload = (Step.from_json(document[kind]).name for kind in ("backend", "workload"))
    modules = [BACKENDS[backend].__module__]
    if workload != "file":
        modules.append(WORKLOADS[workload].__module__)
    return {
        "format": FORMAT,
        "name": document["pipeline"],
        "variant": document["variant"],
        "pareflow": pareflow.__version__,
        "python": "3.11",
        "modules": modules,
        "environment": document["environment"],
    }


def _asked_for(document: Mapping[str, Any]) -> tuple[str, ...]:
    backend = BACKENDS[Step.from_json(document["backend"]).name]
    return ("numpy", *(backend.runtime if issubclass(backend, WorkerBackend) else backend.requires))


def _write_texts(
    bundle: Path, about: Mapping[str, Any], names: list[str], document: Mapping[str, Any], runs: Interpreter
) -> dict[str, str]:
    """Everything that is told in words, then the seal; the versions that are pinned."""
    versions = distributions.closure(names, runs.packages)
    if runs.packages is None:  # a worker's versions are its lock's
        _check_pins(versions, document["requirements"])
    pins = "".join(f"{name}=={version}\n" for name, version in versions.items())
    (bundle / "requirements.txt").write_text(pins)
    licences = distributions.licences(versions, runs.packages)
    (bundle / "licences.json").write_text(json.dumps(licences, indent=1))
    (bundle / "LICENSE").write_text(distributions.licence_text())
    (bundle / "bundle.json").write_text(json.dumps(about, indent=1, sort_keys=True))
    processor = about["environment"]["processor"]
    words = README.format(name=about["name"], python=about["python"], processor=processor)
    (bundle / "README.txt").write_text(words)
    seal(bundle)
    return versions


def _check_pins(versions: Mapping[str, str], judged: list[str]) -> None:
    """Raises: EnvironmentUnfitError where what is installed here is not what the package was judged with."""
    wanted = {
        distributions.normalized(name): version.partition("+")[0]
        for name, _, version in (p.partition("==") for p in judged)
    }
    wrong = [name for name, version in versions.items() if wanted.get(name, version) != version]
    if wrong:
        raise EnvironmentUnfitError(
            "a bundle must be tested with the versions that its model was judged with",
            ", ".join(f"{name} is {versions[name]} here, and was {wanted[name]}" for name in wrong),
            "Install those, or judge the model again with `pareflow check`, or optimize anew",
        )


def _write_code(code: Path, backend: type[Member], *, stand_in: bool) -> None:
    """All of pareflow's modules, and the stand-ins; what the self-test does not import goes again."""
    shutil.copytree(_CODE, code / "pareflow", ignore=shutil.ignore_patterns("__pycache__"))
    for package in _BARE:
        (code / "pareflow" / package / "__init__.py").write_text(_BARE_TEXT)
    if issubclass(backend, WorkerBackend):
        shutil.copy(inprocess.__file__, code / "pareflow" / "compiler" / "worker.py")
    if stand_in:
        shutil.copy(standin.__file__, code / "pydantic.py")


def _keep_only(code: Path, files: set[Path]) -> None:
    for path in sorted(code.rglob("*"), reverse=True):
        if path.is_file() and path not in files:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _failure(said: str) -> WorkloadError | BadOutputError:
    last = said.splitlines()[-1] if said else "it said nothing"
    if "ModuleNotFoundError" in said:
        return WorkloadError(
            "processing must import no more than the runtime and what the workload names",
            last.removeprefix("error: "),
            "Import it inside the methods that train, or name it in `serving_requires`",
        )
    return BadOutputError(
        "a bundle must pass its own self-test where it is made", last, "Judge the model again here"
    )
