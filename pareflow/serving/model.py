"""A packaged model: raw samples in, predictions out. It needs its runtime, numpy and pydantic, and no torch.

The package is a folder of plain files, made by `stages/registration.py`:

    model.json    workload and backend steps, lineage, environment, verdict, the batch that answers were
                  judged in where they depend on it, whether samples may lack values, sha256 of every other
                  file
    artifact/     what the backend loads
    workload/     the workload's code and what its processing reads
    golden.json   a few samples with the outputs and predictions that they gave when it was packaged
"""

import ast
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np

import pareflow  # noqa: F401  (fills the catalog)
from pareflow.comparison import difference
from pareflow.compiler.backend import Backend, Session, backend_of
from pareflow.errors import BadOutputError, InputError, WorkloadError
from pareflow.serving import pickled
from pareflow.serving.finite import allowed
from pareflow.variant import Step, file_digest
from pareflow.workload import Arrays, Samples, Workload, are_lists, as_rows, define

TOLERANCE = 1e-2
"""Of the largest golden output: a quantized graph on other instructions may round otherwise."""
ARRAYS, LISTED = "arrays of ", "list of "
"""What the kind of samples begins with that differ in size: an array of arrays, or a list of them."""
MOST_BYTES = 2**30
"""Of texts in an array, where each takes as much room as the longest."""
MISSING = "missing_values"
"""In `model.json`, where NaN stands for what is missing in the calibration samples; it is not there else."""
_BESIDE = ("model.json", "manifest.json", "plan.yaml")
"""Its own list of files, the store's, and what a KServe export puts there."""
_BYTECODE = r"(.*/)?__pycache__/[^/]+\.pyc"
_ENGINES = r"artifact/TensorrtExecutionProvider_[^/]+"
"""What is written into a package that is used: bytecode, which nobody reads, and what TensorRT builds."""


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
        return backend_of(Step.from_json(self.document["backend"]))

    @property
    def takes_missing(self) -> bool:
        """Whether NaN stands for what is missing in samples: in those that it was calibrated with it does."""
        return bool(self.document.get(MISSING))

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

    def preprocess(self, samples: Any, *, finite: bool = False) -> Arrays:
        """What the network takes for these samples, which come as `predict` takes them.

        `finite`: their numbers must be, as a caller's must, but for NaN where the model takes missing values.
        Raises: InputError where they are not of the kind of the model's own samples.
        """
        raw = self._raw(samples)
        if finite:
            _check_finite(raw, missing=self.takes_missing)
        return self._workload.preprocess(raw)

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """The predictions, one per sample."""
        return self._workload.predicted(outputs)

    def check_golden(self) -> None:
        """Raises: BadOutputError unless the golden samples give their golden outputs and predictions."""
        golden = self.golden()
        self.golden_samples = golden["samples"]
        answered = self.outputs(self.golden_samples)
        for name, outputs in answered.items():
            error = difference(name, np.asarray(golden["outputs"][name]), outputs).error
            if not error <= TOLERANCE:
                raise BadOutputError(
                    f"a packaged model must repeat its golden outputs within {TOLERANCE:g}",
                    f"`{name}` differs by {error:g} of the largest",
                    "It runs differently here: judge it again in this environment",
                )
        predictions = self.postprocess(answered)
        packaged = as_rows(golden["predictions"])
        self.gives_lists = are_lists(packaged)
        numbers = predictions.dtype.kind == packaged.dtype.kind == "f" and predictions.shape == packaged.shape
        alike = _near(golden["predictions"]) if numbers else _mostly
        pairs = enumerate(zip(golden["predictions"], predictions.tolist(), strict=True))
        for position, (expected, found) in pairs:
            if not alike(found, expected):
                raise BadOutputError(
                    "a packaged model must repeat its golden predictions",
                    f"for sample {position} it answers {brief(found)}, not {brief(expected)}",
                    "Judge it again here",
                )

    def golden(self) -> dict[str, Any]:
        """A few samples, with the outputs and predictions that they gave when they were packaged.

        Read anew each time: of dense outputs they are large.
        """
        document: dict[str, Any] = json.loads((self._folder / "golden.json").read_text())
        return document

    @functools.cached_property
    def golden_samples(self) -> list[Any]:
        """The samples alone, kept once they were read."""
        samples: list[Any] = self.golden()["samples"]
        return samples

    @functools.cached_property
    def gives_lists(self) -> bool:
        """Whether predictions differ in shape from sample to sample, as detections do."""
        return are_lists(as_rows(self.golden()["predictions"]))

    @functools.cached_property
    def fields(self) -> tuple[str, ...] | None:
        """The names of a sample's values, where samples are records."""
        kind: str = self.document["samples"]
        return np.dtype(ast.literal_eval(kind)).names if kind.startswith("[") else None

    @functools.cached_property
    def _texts_in_array(self) -> bool:
        kind: str = self.document["samples"]
        golden: list[Any] = self.golden_samples if kind == "object" else [None]
        return kind.startswith(("<U", ">U")) or all(isinstance(one, str) for one in golden)

    def _raw(self, samples: Any) -> Samples:
        kind: str = self.document["samples"]
        if hasattr(samples, "iloc"):
            samples = _rows(samples, self.fields)
        if self.fields is not None:
            return _records(samples, np.dtype(ast.literal_eval(kind)))
        if kind == "text":
            return _texts(samples)
        if self._texts_in_array:
            array = np.asarray(samples, dtype=object)
            _texts(array.flat)
            return array if kind == "object" else _padded(array)
        if kind.startswith(ARRAYS):
            return _arrays(samples, np.dtype(kind.removeprefix(ARRAYS)))
        if kind.startswith(LISTED):
            return list(_arrays(samples, np.dtype(kind.removeprefix(LISTED))))
        with np.errstate(invalid="ignore"):  # what is no number is told below
            array = np.asarray(samples, dtype=kind)
        _check_whole(samples, array)
        return array


def _rows(table: Any, fields: Sequence[str] | None) -> list[Any]:
    """The samples in a table of pandas: its one column, or a record of each row. Raises: InputError."""
    if fields is not None:
        return list(table.to_dict("records"))
    if len(table.columns) != 1:
        raise _unlike("a table of samples must have one column", f"it has {len(table.columns)}")
    return list(table.iloc[:, 0])


def _records(samples: Any, kind: np.dtype[Any]) -> np.ndarray:
    """Samples of one value per input. Raises: InputError, LookupError."""
    names = kind.names or ()
    for sample in samples:
        if isinstance(sample, Mapping) and len(sample) > len(names):
            unknown = ", ".join(map(repr, sample.keys() - set(names)))
            raise _unlike(f"a sample must hold {', '.join(names)}, and no more", f"one has {unknown}")
    columns = {name: [sample[name] for sample in samples] for name in names}
    kinds = [(name, _as_wide(column, kind[name])) for name, column in columns.items()]
    array = np.array(list(zip(*columns.values(), strict=True)), dtype=kinds)
    for name, column in columns.items():
        _check_whole(column, array[name])
    return array


def _as_wide(column: list[Any], kind: np.dtype[Any]) -> np.dtype[Any]:
    """The type of a field that holds these values; of texts as wide as the longest. Raises: InputError."""
    if kind.base.kind != "U":
        return kind
    texts = np.array(column, dtype=object)
    _texts(texts.flat)
    return np.dtype((_padded(texts).dtype, kind.shape))


def _texts(samples: Any) -> list[str]:
    """Raises: InputError where one is no text."""
    for sample in samples:
        if not isinstance(sample, str):
            raise _unlike("samples must be texts", f"one is {brief(sample)}")
    return list(map(str, samples))


def holds_text(values: Any) -> bool:
    """Whether one of these values is a text, in whatever lists and arrays they lie."""
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "SU" or (values.dtype.kind == "O" and holds_text(values.tolist()))
    if not isinstance(values, (list, tuple)):
        return isinstance(values, (str, bytes))
    kinds = set(map(type, values))
    if any(issubclass(kind, (str, bytes)) for kind in kinds):
        return True
    nested = any(issubclass(kind, (list, tuple, np.ndarray)) for kind in kinds)
    return nested and any(map(holds_text, values))


def padded_bytes(values: np.ndarray) -> int:
    """What an array of these objects' texts takes, all as long as the longest."""
    longest = max((len(value) for value in values.flat if isinstance(value, str)), default=0)
    return values.size * longest * np.dtype("U1").itemsize


def _padded(texts: np.ndarray) -> np.ndarray:
    """Texts of any length as numpy's. Raises: InputError where these take too much room."""
    size = padded_bytes(texts)
    if size > MOST_BYTES:
        raise _unlike(
            f"texts must take {MOST_BYTES >> 20} MiB at most, each as long as the longest",
            f"{texts.size} of them take {size >> 20} MiB",
            "Send fewer at once, or long ones by themselves",
        )
    return texts.astype(np.str_)


def _arrays(samples: Any, kind: np.dtype[Any]) -> np.ndarray:
    """Samples of different lengths: an array of arrays. Raises: InputError."""
    found = np.empty(len(samples), dtype=object)
    for position, sample in enumerate(samples):
        found[position] = np.asarray(sample, dtype=kind)
        _check_whole(sample, found[position])
    return found


def _near(predictions: list[Any]) -> Callable[[Any, Any], bool]:
    """Whether two predictions that are no labels are equal as far as outputs must be."""
    values = np.abs(np.asarray(predictions, dtype=float))
    largest = float(values[np.isfinite(values)].max(initial=0.0))
    return functools.partial(np.allclose, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True)


def _mostly(found: Any, expected: Any) -> bool:
    """Whether a label is the same, or all but a share `TOLERANCE` of many: a pixel's may be nearly a tie.

    Numbers with fractions among them, as boxes have, are equal as far as outputs must be.
    """
    try:
        ours, theirs = np.asarray(found), np.asarray(expected)
    except ValueError:  # lists of several lengths
        return bool(found == expected)
    if ours.shape != theirs.shape:
        return False
    if "f" in (ours.dtype.kind, theirs.dtype.kind):
        return _near([expected])(found, expected)
    return float(np.mean(ours == theirs)) >= 1 - TOLERANCE if ours.size else True


def _check_whole(given: Any, held: np.ndarray) -> None:
    """Raises: InputError where a type of whole numbers holds other ones than were given."""
    if held.dtype.kind not in "biu":
        return
    texts = not isinstance(given, np.ndarray) and holds_text(given)
    numbers = np.asarray(given, dtype=object if texts else None)  # as objects texts take no more room
    texts_are_read = held.dtype.kind != "b"  # of a table in CSV: numpy has read them as numbers
    if numbers.dtype == held.dtype or (numbers.dtype.kind in "SU" and texts_are_read):
        return
    lost = numbers[numbers != held]
    if texts and texts_are_read:
        lost = lost[[not isinstance(value, (str, bytes)) for value in lost]]
    if lost.size:
        raise _unlike(
            f"samples must be numbers that {held.dtype} holds",
            f"one is {lost.flat[0]}",
            "Send them as the model's data have them, neither scaled nor shifted",
        )


def _check_finite(samples: Samples, *, missing: bool) -> None:
    """Raises: InputError where a number is infinite; or NaN, unless some may be `missing`."""
    for array in _held(samples):
        if not allowed(array, missing=missing):
            found = "one is infinite" if missing else "one is missing, NaN or infinite"
            raise _unlike("the numbers of samples must be finite", found)


def holds_missing(samples: Samples) -> bool:
    """Whether NaN stands for a number that is missing in one of them."""
    return any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in _held(samples))


def _held(samples: Samples) -> Iterator[np.ndarray]:
    """The arrays that samples are made of."""
    if not isinstance(samples, np.ndarray):
        given: Sequence[Any] = samples
        yield from (np.asarray(sample) for sample in given if not isinstance(sample, str))
    elif samples.dtype.names is not None:
        yield from (samples[name] for name in samples.dtype.names)
    elif _are_arrays(samples):
        yield from samples
    else:
        yield samples


def _unlike(must: str, found: str, remedy: str = "Send them as the model's data have them") -> InputError:
    return InputError(must, found, remedy)


def kind_of(samples: Samples) -> str:
    """What `model.json` says of samples: `text`, a numpy type, or arrays of one that differ in size.

    Raises: WorkloadError where no JSON gives them back.
    """
    if isinstance(samples, np.ndarray) and not _are_arrays(samples):
        if _comes_back(samples):
            names = samples.dtype.names  # of some records numpy prints more than these and their types
            return str(samples.dtype if names is None else np.dtype([(n, samples.dtype[n]) for n in names]))
    elif not isinstance(samples, np.ndarray) and all(isinstance(sample, str) for sample in samples):
        return "text"
    try:
        kinds = {np.asarray(sample).dtype for sample in samples}
    except ValueError:  # lists of lists of several lengths
        kinds = {np.dtype(object)}
    if all(kind.kind in "biuf" for kind in kinds):
        return (ARRAYS if isinstance(samples, np.ndarray) else LISTED) + str(np.result_type(*kinds))
    raise WorkloadError(
        "samples must be an array of numbers or texts, texts, or arrays of numbers, which JSON gives back",
        f"they are a {type(samples).__name__} of {', '.join(sorted(map(str, kinds)))}",
        "Let `data()` give such samples: bytes as text in base64, dates as text or numbers",
    )


def _comes_back(samples: np.ndarray) -> bool:
    """Whether an array is the same once it was JSON."""
    if samples.dtype == object:
        try:
            json.dumps(as_json(samples))
        except (TypeError, ValueError):
            return False
        return True
    names = samples.dtype.names
    kinds = [samples.dtype] if names is None else [samples.dtype[name].base for name in names]
    return all(kind.kind in "biufU" for kind in kinds)


def _are_arrays(samples: np.ndarray) -> bool:
    listed = samples.dtype == object and samples.ndim == 1
    return listed and any(isinstance(sample, np.ndarray) for sample in samples)


def as_json(samples: Samples) -> list[Any]:
    """Raw samples as JSON holds them, and `PackagedModel.predict` takes them: records as mappings."""
    if isinstance(samples, np.ndarray) and samples.dtype.names is not None:
        return [{name: row[name].tolist() for name in samples.dtype.names} for row in samples]
    return [sample if isinstance(sample, str) else np.asarray(sample).tolist() for sample in samples]


def verified(folder: Path) -> dict[str, Any]:
    """The package's `model.json`. Raises: InputError where a file is missing, or is not what was packaged, or
    was not packaged at all.

    Of `tensorrt` alone that leaves out the engines that it builds here for another GPU: native code, by no
    digest covered.
    """
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
    since = f"{_BYTECODE}|{_ENGINES}" if "tensorrt" in document.get("backend", {}) else _BYTECODE
    strange = sorted(name for name in _files(folder) if not (name in found or re.fullmatch(since, name)))
    if strange:
        raise InputError(
            "a package must hold no file that was not packaged",
            f"{', '.join(strange[:3])} in {folder} was not",
            "Remove it, and find out who put it there; a registered version can be downloaded again",
        )
    return document


def _files(folder: Path) -> Iterator[str]:
    """The paths of all other files from there, also behind links."""
    for parent, _, names in os.walk(folder, followlinks=True):
        paths = ((Path(parent) / name).relative_to(folder).as_posix() for name in names)
        yield from (path for path in paths if path not in _BESIDE)


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
