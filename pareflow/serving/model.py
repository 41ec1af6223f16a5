"""A packaged model: raw samples in, predictions out. It needs its runtime, numpy and pydantic, and no torch.

The package is a folder of plain files, made by `stages/registration.py`:

    model.json    workload and backend steps, lineage, environment, verdict, sha256 of every other file
    artifact/     what the backend loads
    workload/     the workload's code and what its processing reads
    golden.json   a few samples with the outputs and predictions that they gave when it was packaged
"""

import ast
import functools
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import pareflow  # noqa: F401  (fills the catalog)
from pareflow.catalog import BACKENDS, find
from pareflow.compiler.backend import Backend, Session
from pareflow.errors import BadOutputError, InputError
from pareflow.serving import pickled
from pareflow.variant import Step, file_digest
from pareflow.workload import Arrays, Samples, Workload, define

TOLERANCE = 1e-2
"""Of the largest golden output: a quantized graph on other instructions may round otherwise."""


class PackagedModel:
    """A package, opened: its files verified, its session loaded."""

    def __init__(self, folder: Path) -> None:
        self.document = network(folder)
        self._folder = folder
        self._workload: Workload = define(self.document["workload"], folder / "workload")
        self.session: Session = self.load_session()

    @property
    def backend(self) -> Backend:
        """What runs its network, with its settings."""
        backend = find(BACKENDS, Step.from_json(self.document["backend"]), "backend")
        assert isinstance(backend, Backend)
        return backend

    def load_session(self) -> Session:
        """Another session of the same executable: each answers one request at a time."""
        pickled.check(self._folder / "artifact")
        return self.backend.load(self._folder / "artifact")

    def predict(self, samples: Any) -> np.ndarray:
        """One prediction per sample. Takes arrays, lists of texts, and tables of one column."""
        return self.postprocess(self.outputs(samples))

    def outputs(self, samples: Any) -> Arrays:
        """The network's outputs by name."""
        return self.session.run(self.preprocess(samples))

    def preprocess(self, samples: Any) -> Arrays:
        """What the network takes for these samples, which come as `predict` takes them.

        Raises: InputError where they are whole numbers, and the given ones are none that their type holds.
        """
        return self._workload.preprocess(self._raw(samples))

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """The predictions, one per sample."""
        return self._workload.postprocess(outputs)

    def check_golden(self) -> None:
        """Raises: BadOutputError unless the golden samples give their golden outputs and predictions."""
        golden = self.golden()
        answered = self.outputs(golden["samples"])
        for name, outputs in answered.items():
            expected = np.asarray(golden["outputs"][name])
            error = float(np.abs(outputs - expected).max() / max(float(np.abs(expected).max()), 1e-6))
            if not error <= TOLERANCE:
                raise BadOutputError(
                    f"a packaged model must repeat its golden outputs within {TOLERANCE:g}",
                    f"`{name}` differs by {error:g} of the largest",
                    "It runs differently here: judge it again in this environment",
                )
        predictions = self.postprocess(answered)
        alike = _near(golden["predictions"]) if predictions.dtype.kind == "f" else operator.eq
        pairs = enumerate(zip(golden["predictions"], predictions.tolist(), strict=True))
        for position, (expected, found) in pairs:
            if not alike(found, expected):
                raise BadOutputError(
                    "a packaged model must repeat its golden predictions",
                    f"for sample {position} it answers {found}, not {expected}",
                    "Judge it again here",
                )

    def golden(self) -> dict[str, Any]:
        """A few samples, with the outputs and predictions that they gave when they were packaged."""
        document: dict[str, Any] = json.loads((self._folder / "golden.json").read_text())
        return document

    def _raw(self, samples: Any) -> Samples:
        if hasattr(samples, "iloc"):
            samples = samples.iloc[:, 0].tolist()
        kind: str = self.document["samples"]
        if kind == "text":
            return [str(sample) for sample in samples]
        if kind.startswith("["):  # records: one value per input
            records = np.dtype(ast.literal_eval(kind))
            rows = [tuple(sample[name] for name in records.names or ()) for sample in samples]
            array = np.array(rows, dtype=records)
            for name in records.names or ():
                _check_whole([sample[name] for sample in samples], array[name])
            return array
        with np.errstate(invalid="ignore"):  # what is no number is told below
            array = np.asarray(samples, dtype=kind)
        _check_whole(samples, array)
        return array


def _near(predictions: list[Any]) -> Callable[[Any, Any], bool]:
    """Whether two predictions that are no labels are equal as far as outputs must be."""
    values = np.abs(np.asarray(predictions, dtype=float))
    largest = float(values[np.isfinite(values)].max(initial=0.0))
    return functools.partial(np.allclose, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)


def _check_whole(given: Any, held: np.ndarray) -> None:
    """Raises: InputError where a type of whole numbers holds other ones than were given."""
    numbers = np.asarray(given)
    if held.dtype.kind not in "biu" or numbers.dtype == held.dtype or numbers.dtype.kind in "SU":
        return
    lost = numbers[numbers != held]
    if lost.size:
        raise InputError(
            f"samples must be numbers that {held.dtype} holds",
            f"one is {lost.flat[0]}",
            "Send them as the model's data have them, neither scaled nor shifted",
        )


def as_json(samples: Samples) -> list[Any]:
    """Raw samples as JSON holds them, and `PackagedModel.predict` takes them: records as mappings."""
    if not isinstance(samples, np.ndarray):
        return list(samples)
    if samples.dtype.names is None:
        return list(samples.tolist())
    return [{name: row[name].tolist() for name in samples.dtype.names} for row in samples]


def verified(folder: Path) -> dict[str, Any]:
    """The package's `model.json`. Raises: InputError where a file is missing or is not what was packaged."""
    with _whole(folder):
        document: dict[str, Any] = json.loads((folder / "model.json").read_text())
        found = {name: file_digest(folder / name) for name in document["files"]}
    wrong = [name for name, sha256 in document["files"].items() if found[name] != sha256]
    if wrong:
        raise InputError(
            "every file of a package must be as it was packaged",
            f"{', '.join(wrong)} in {folder} changed",
            "Register the model again",
        )
    return document


def network(folder: Path) -> dict[str, Any]:
    """The same of a network with its processing. Raises: InputError where it holds something else too."""
    document = verified(folder)
    if "backend" not in document:
        raise InputError(
            f"{folder} must hold a network with its processing",
            f"it holds a {str(document.get('kind')).replace('_', ' ')}",
            "Language models are served, and neither tuned, calibrated nor exported",
        )
    return document


def told(folder: Path) -> dict[str, Any]:
    """What `model.json` says, unverified: for its name, before it is opened. Raises: InputError."""
    with _whole(folder):
        document: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return document


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Raises: InputError for what a folder lacks that is no package."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} must hold a whole pareflow package", f"{error}", "Register the model again"
        ) from error


def write_manifest(folder: Path, document: Mapping[str, Any]) -> None:
    """Write `model.json`, with the sha256 of every other file of the package."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): file_digest(path) for path in files}
    (folder / "model.json").write_text(json.dumps({**document, "files": digests}, indent=1))


def _load_pyfunc(path: str) -> PackagedModel:
    """MLflow's entry point for a pyfunc made from code (`loader_module`)."""
    return PackagedModel(Path(path))


def check(folder: str) -> dict[str, Any]:
    """For a process of its own: open a package, verify it, repeat its golden outputs; what ran."""
    model = PackagedModel(Path(folder))
    model.check_golden()
    ran = model.session.ran()
    return {name: getattr(ran, name) for name in ran.__slots__}
