"""The offline bundle: a package with all that runs it but the runtime itself.

run.py             the runner: `python run.py INPUT …`, `python run.py --self-test`
requirements.txt   exact pins of the runtime and of what it needs
package/           the registered package as it is: artifact, processing, golden samples, verdict
code/              the few modules of pareflow that it runs, and a stand-in for pydantic
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
from pathlib import Path
from typing import Any

import pareflow
from pareflow.catalog import BACKENDS, WORKLOADS, unknown
from pareflow.compiler.worker import WorkerBackend
from pareflow.errors import (
    BadOutputError,
    EnvironmentUnfitError,
    InputError,
    SpecError,
    TimedOutError,
    WorkloadError,
)
from pareflow.serving import alone, distributions, runner, standin
from pareflow.serving.model import verified
from pareflow.store import MANIFEST
from pareflow.variant import Step, file_digest
from pareflow.workload import define

FORMAT = 1
SECONDS = 600
"""The most that a self-test may take."""

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
    reason = None
    if "torch" in cls.requires:
        reason = "it runs in torch, with the classes of the user's own network"
    elif issubclass(cls, WorkerBackend):
        reason = "its runtime lives in a worker environment"
    if reason is not None:
        raise InputError(
            "an offline bundle must hold a model whose runtime stands alone",
            f"`{step.name}` does not: {reason}",
            "Export a variant of onnxruntime or openvino",
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

    The self-test runs where nothing can be imported but what requirements.txt names; the modules of pareflow
    that it imports are those that the bundle holds. Raises: EnvironmentUnfitError, WorkloadError,
    BadOutputError, TimedOutError.
    """
    document = verified(package)
    shutil.copytree(package, into / "package", ignore=shutil.ignore_patterns(MANIFEST))
    shutil.copy(runner.__file__, into / "run.py")
    _write_code(into / "code", stand_in="pydantic" not in described["serving_requires"])
    if described["class_names"] is not None:
        (into / "labels.json").write_text(json.dumps(described["class_names"], indent=1))
    names = [*_asked_for(document), *described["serving_requires"]]
    about = _about(document)
    for _ in range(2):  # with all of pareflow's modules, then with those alone that were imported
        versions = _write_texts(into, about, names, document)
        seen = self_test(into, distributions.modules(versions))
        _keep_only(into / "code", {into / file for file in seen["files"]})
    return about


def self_test(bundle: Path, modules: list[str]) -> dict[str, list[str]]:
    """The bundle's own self-test, where these are all top-level modules that can be imported.

    Which of them, and which of its own files, it does import.
    Raises: WorkloadError where more is needed, BadOutputError where it fails otherwise, TimedOutError.
    """
    with tempfile.TemporaryDirectory(prefix="pareflow-") as folder:
        seen = Path(folder) / "seen.json"
        command = [sys.executable, "-I", "-W", "ignore", alone.__file__]
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
        if done.returncode != 0:
            raise _failure(done.stderr.strip() or done.stdout.strip())
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
    return ("numpy", *BACKENDS[Step.from_json(document["backend"]).name].requires)


def _write_texts(
    bundle: Path, about: Mapping[str, Any], names: list[str], document: Mapping[str, Any]
) -> dict[str, str]:
    """Everything that is told in words, then the seal; the versions that are pinned."""
    versions = distributions.closure(names)
    _check_pins(versions, document["requirements"])
    pins = "".join(f"{name}=={version}\n" for name, version in versions.items())
    (bundle / "requirements.txt").write_text(pins)
    (bundle / "licences.json").write_text(json.dumps(distributions.licences(versions), indent=1))
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
        distributions.normalized(name): version for name, _, version in (p.partition("==") for p in judged)
    }
    wrong = [name for name, version in versions.items() if wanted.get(name, version) != version]
    if wrong:
        raise EnvironmentUnfitError(
            "a bundle must be tested with the versions that its model was judged with",
            ", ".join(f"{name} is {versions[name]} here, and was {wanted[name]}" for name in wrong),
            "Install those, or judge the model again with `pareflow check`, or optimize anew",
        )


def _write_code(code: Path, *, stand_in: bool) -> None:
    """All of pareflow's modules, and the stand-in; what the self-test does not import goes again."""
    shutil.copytree(_CODE, code / "pareflow", ignore=shutil.ignore_patterns("__pycache__"))
    for package in _BARE:
        (code / "pareflow" / package / "__init__.py").write_text(_BARE_TEXT)
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
