"""What a user brings: the model, its data splits, its metric, its pre- and postprocessing."""

import ast
import hashlib
import importlib.util
import itertools
import os
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr, ValidationError

from pareflow.catalog import WORKLOADS, Member, find, problem
from pareflow.errors import PareflowError, SplitError, UnsuitableError, WorkloadError
from pareflow.variant import Step, array_bytes, digest, file_digest

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

Arrays = dict[str, np.ndarray]
"""Named arrays, the first axis of each is the batch: what networks take and give."""

Samples = np.ndarray | Sequence[str]
"""Raw samples as the user's callers send them: an array whose first axis counts them, or texts."""

SplitName = Literal["train", "calibration", "search", "verdict"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "search", "verdict")


@dataclass(frozen=True)
class Split:
    """Samples and their targets, of equal length; no targets where the data have no labels.

    What is neither an array nor a sequence of texts, such as a pandas Series, becomes one: it would be taken
    from by its labels, and not by position.
    """

    samples: Samples
    targets: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.targets is not None and not isinstance(self.targets, np.ndarray):
            object.__setattr__(self, "targets", as_rows(self.targets))
        if hasattr(self.samples, "__array__") and not isinstance(self.samples, np.ndarray):
            samples = np.asarray(self.samples)
            texts = all(isinstance(sample, str) for sample in samples)
            object.__setattr__(self, "samples", samples.tolist() if texts else samples)

    def __len__(self) -> int:
        return len(self.samples) if self.targets is None else len(self.targets)

    def check_lengths(self, name: str) -> None:
        """Raises: SplitError where there are no samples, or not as many targets; `name` says of what."""
        if len(self) == 0 or len(self.samples) != len(self):
            raise SplitError(
                "every split must hold samples, each with its target",
                f"{name} has {len(self.samples)} samples and {len(self)} targets",
                "Mend `data()`, or the file that holds them",
            )

    def take(self, indices: np.ndarray) -> "Split":
        """The samples at these positions."""
        targets = None if self.targets is None else self.targets[indices]
        if isinstance(self.samples, np.ndarray):
            return Split(self.samples[indices], targets)
        return Split([self.samples[i] for i in indices], targets)

    def labels(self) -> np.ndarray:
        """The targets. Raises: WorkloadError where there are none."""
        if self.targets is None:
            raise WorkloadError(
                "these samples need targets", "the data have none", "Give `data()` labels, or do without"
            )
        return self.targets

    def sample_digests(self) -> list[str]:
        """One digest per sample, of its content: equal samples have equal digests. Raises: WorkloadError."""
        return [_sample_digest(sample) for sample in self.samples]


@dataclass(frozen=True)
class Splits:
    """The four disjoint splits (law 5): train, calibrate, search, and the one that decides."""

    train: Split
    calibration: Split
    search: Split
    verdict: Split

    @classmethod
    def cut(cls, data: Split, *, calibration: int, search: int, verdict: int, seed: int) -> "Splits":
        """Shuffle and cut: these many samples for each purpose, all others for training.

        Raises: SplitError where not every sample has a target, or none is left for training.
        """
        data.check_lengths("what is cut")
        if calibration + search + verdict >= len(data):
            raise SplitError(
                "calibration, search and verdict must leave one sample for training at least",
                f"{calibration} + {search} + {verdict} are to be taken of {len(data)}",
                "Let `data()` take fewer, or give it more",
            )
        order = np.random.default_rng(seed).permutation(len(data))
        edges = np.cumsum([verdict, search, calibration])
        parts = [data.take(part) for part in np.split(order, edges)]
        return cls(verdict=parts[0], search=parts[1], calibration=parts[2], train=parts[3])

    @classmethod
    def by_content(
        cls, data: Split, *, calibration: float, search: float, verdict: float, seed: int
    ) -> "Splits":
        """About these shares for each purpose, all others for training; for data that grow.

        A sample's own digest says where it belongs, so that it stays there whatever joins it: no champion of
        before is judged on what it was trained on. Equal samples stay together, and the first alone decides
        for them: intervals take samples for independent. Each part is in the order of these digests, so that
        its first samples are as mixed as all, also of data sorted by class or time.
        Raises: SplitError where not every sample has a target.
        """
        data.check_lengths("what is cut")
        drawn = np.array(
            [int(hashlib.sha256(f"{seed} {d}".encode()).hexdigest()[:13], 16) for d in data.sample_digests()]
        )
        edges = np.cumsum([verdict, search, calibration])
        order = np.argsort(drawn, kind="stable")
        part = np.searchsorted(edges, drawn[order] / 16**13, side="right")
        first = np.diff(drawn[order], prepend=-1) > 0
        parts = [data.take(order[(part == number) & (first | (number > 0))]) for number in range(4)]
        return cls(verdict=parts[0], search=parts[1], calibration=parts[2], train=parts[3])

    def first(self, count: int) -> "Splits":
        """At most so many samples of each, the first ones; the verdict split as it is (law 5)."""
        parts = (self.train, self.calibration, self.search)
        train, calibration, search = (split.take(np.arange(min(count, len(split)))) for split in parts)
        return Splits(train, calibration, search, self.verdict)

    def check(self) -> str:
        """The digest of all data.

        Raises: SplitError where a split is empty or two share a sample; WorkloadError where an object in one
        has no content of its own.
        """
        seen: dict[str, SplitName] = {}
        summary = hashlib.sha256()
        for name in SPLITS:
            split: Split = getattr(self, name)
            split.check_lengths(f"`{name}`")
            ours = split.sample_digests()
            shared = [other for other in map(seen.get, ours) if other is not None]
            if shared:
                raise SplitError(
                    "no sample may be in two splits",
                    f"{len(shared)} samples of `{name}` are also in `{shared[0]}`",
                    "Keep one of each before they are split: in `data()`, or in the file that holds them",
                )
            seen |= dict.fromkeys(ours, name)
            unlabelled = split.targets is None
            targets = [""] * len(ours) if unlabelled else map(_sample_digest, split.labels())
            for sample, target in zip(ours, targets, strict=True):
                summary.update(f"{name} {sample} {target}\n".encode())
        return summary.hexdigest()


def as_rows(given: Any) -> np.ndarray:
    """A row per sample: an array; or, where rows differ in shape as detections do, one of objects: lists."""
    try:
        rows = np.asarray(given)
    except ValueError:  # numpy has no array of several lengths
        rows = np.fromiter(given, dtype=object, count=len(given))
    if rows.dtype != object or rows.ndim != 1:
        return rows
    return as_lists(rows)


def are_lists(rows: np.ndarray) -> bool:
    """Whether rows that differ in shape are among them, as `as_rows` gives these: lists."""
    return rows.dtype == object and any(isinstance(row, list) for row in rows)


def as_lists(rows: np.ndarray) -> np.ndarray:
    """The same rows as an array of objects, whatever their shapes: lists."""
    return np.fromiter(map(_listed, rows), dtype=object, count=len(rows))


def _listed(row: Any) -> Any:
    """A row without arrays, however deep they lie."""
    values = row.tolist() if hasattr(row, "tolist") else row
    return [_listed(value) for value in values] if isinstance(values, list | tuple) else values


def _sample_digest(sample: Any) -> str:
    return hashlib.sha256(sample.encode() if isinstance(sample, str) else _bytes(sample)).hexdigest()


def _bytes(sample: Any) -> bytes:
    """An array's bytes; where they would be addresses, those of what lies there. Raises: WorkloadError."""
    array = np.ascontiguousarray(sample)
    try:
        return array_bytes(array)
    except UnsuitableError as error:
        raise WorkloadError(
            f"samples and targets of dtype {array.dtype} must be told apart by their content: {error.must}",
            error.found,
            f"{error.remedy} in `data()`",
        ) from error


class Workload(Member, ABC):
    """The base of every workload: of a user's `workload.py`, and of those that pareflow brings.

    The class is its settings; the YAML gives their values. Import torch inside the methods that need it:
    the registered model keeps `preprocess` and `postprocess`, and runs them where there is no torch.
    """

    family: ClassVar[dict[str, type[Member]]] = WORKLOADS
    metric: ClassVar[str] = "accuracy"
    """A metric of `pareflow/metrics/`, or the path of an `evaluate` module beside the workload."""
    serving_requires: ClassVar[tuple[str, ...]] = ()
    """The distributions that pre- and postprocessing import, beside numpy."""
    made_of: ClassVar[tuple[ModuleType, ...] | None] = None
    """What a class is made of beside its own module, where that is less than its folder's `code_files`."""

    seed: int = Field(default=0, ge=0, description="of training and of every random choice")
    _folder: Path = PrivateAttr(default=Path())
    _file: str | None = PrivateAttr(default=None)

    @property
    def step(self) -> Step:
        """The reference that `define` makes this workload from, every setting said."""
        settings = self.model_dump(mode="json")
        if self._file is None:
            return Step(self.name, settings)
        return Step("file", {"path": self._file, "settings": settings})

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the settings start from: that of the pipeline YAML."""
        return self._folder

    @abstractmethod
    def data(self) -> Splits:
        """The data, in four disjoint splits."""

    @abstractmethod
    def network(self) -> "nn.Module | onnx.ModelProto":
        """The network before training (or as downloaded), as a torch module or an ONNX graph.

        It takes and gives what the processing says.
        """

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        """The trained network, where it is a torch module. The default is for networks that come trained."""
        return network

    def loss(self, outputs: Any, targets: "torch.Tensor") -> "torch.Tensor":
        """What training makes small, as techniques that train see it: a scalar.

        `outputs` is what the network's `forward` gives. The default: cross-entropy of logits of shape
        (samples, classes) where targets are integers or true and false, else mean squared error.
        """
        from torch.nn.functional import cross_entropy, mse_loss

        if targets.is_floating_point():
            return mse_loss(outputs.reshape(targets.shape), targets.to(outputs.dtype))
        return cross_entropy(outputs, targets.long())

    def augment(self, inputs: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """A training batch changed at random by torch's own generator; the default leaves it as it is."""
        return inputs

    def slices(self, data: Split) -> Mapping[str, np.ndarray] | None:
        """Parts of a split on which quality is told apart: per name, true or false for each sample.

        None stands for one slice per class, where the metric is a share of correct answers.
        """
        return None

    def at_length(self, length: int) -> "Workload":
        """This workload with every input `length` long, for networks over sequences.

        Raises: WorkloadError, by default always.
        """
        raise WorkloadError(
            "lengths can be swept where inputs are sequences",
            f"`{type(self).__name__}` has no sequence axis",
            "Leave out `sweep.lengths`, or define `at_length()` in the workload",
        )

    def given(self) -> Mapping[str, Path]:
        """Ready-made variants by name: ONNX files that the technique `given` puts in the network's place."""
        return {}

    def arranged(self, network: "onnx.ModelProto") -> "onnx.ModelProto":
        """The graph of a `given()` file with the inputs and outputs of `network()`, changed in place.

        The default is for files that have these.
        """
        return network

    def students(self) -> "Mapping[str, Callable[[], nn.Module]]":
        """Smaller networks by name, untrained, for distillation; inputs and outputs as of `network()`."""
        return {}

    @abstractmethod
    def preprocess(self, samples: Samples) -> Arrays:
        """The network's inputs: by the names of its `forward`'s parameters, or in their order."""

    @abstractmethod
    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """Predictions, one per sample, from the network's outputs."""

    def predicted(self, outputs: Arrays) -> np.ndarray:
        """What `postprocess` gives, as an array: code of one's own may give a list.

        Rows that differ in shape are lists, in an array of objects.
        """
        return as_rows(self.postprocess(outputs))

    def judged(self, outputs: Arrays) -> np.ndarray:
        """The output that metrics of fidelity compare with the original's. The default: the first.

        An override gives the one that `postprocess` reads.
        """
        return next(iter(outputs.values()))

    def class_names(self) -> Sequence[str] | None:
        """The names of the classes, where predictions are positions among them; the default is None."""
        return None

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Per input and output, which axes vary beside the batch, by name. The default: none."""
        return {}

    def check(self, example: Arrays) -> None:
        """Say at `pareflow check` what a run would find late; `example` is what `preprocess` gives.

        The default finds nothing. Raises: WorkloadError.
        """

    def check_labels(self, labels: np.ndarray) -> None:
        """Say at `pareflow check` which targets no prediction equals, where what equals its target is right.

        The default finds nothing. Raises: WorkloadError.
        """

    def sources(self) -> list[Path]:
        """The files, beside code and data, that decide the network: the weights it starts from."""
        return []

    def pack(self, folder: Path) -> Step:
        """Copy what pre- and postprocessing read into `folder`; the step that loads this workload from there.

        The default is for processing that reads no files.
        """
        return self.step


@dataclass(frozen=True)
class LoadedWorkload:
    """A workload with its data loaded and checked, and the verdict split shut.

    `digest` covers the code, the settings, the data and the weights: it names the original (law 6).
    """

    definition: Workload
    digest: str
    data_digest: str
    splits: Splits
    opened: frozenset[SplitName] = frozenset({"train", "calibration", "search"})
    scratch: Path | None = None
    """Where a technique leaves what a killed run goes on from; None where there is no such place."""
    shared: Callable[[str, Callable[[Path], None]], Path] | None = None
    """A store's `ensure`, for what several variants need: a key's folder, made once. None without one."""
    limit_s: float | None = None
    """Seconds within which a technique must end; None where it may take as long as it likes."""

    def split(self, name: SplitName) -> Split:
        """One split. Raises: WorkloadError for the verdict split, unless this is the validation (law 5)."""
        if name not in self.opened:
            raise WorkloadError(
                "the verdict split must stay shut until the finalists are chosen",
                f"`{name}` was asked for, and only {', '.join(sorted(self.opened))} are open here",
                "Use the calibration or the search split",
            )
        split: Split = getattr(self.splits, name)
        return split

    def for_validation(self) -> "LoadedWorkload":
        """The same workload with the verdict split open, and no other."""
        return LoadedWorkload(
            self.definition, self.digest, self.data_digest, self.splits, frozenset({"verdict"})
        )

    def feeds(self, name: SplitName, batch_size: int, limit: int | None = None) -> Iterator[Arrays]:
        """The preprocessed inputs of a split in batches, at most `limit` samples in all."""
        samples = self.split(name).samples
        end = len(samples) if limit is None else min(limit, len(samples))
        for start in range(0, end, batch_size):
            yield self.definition.preprocess(samples[start : min(start + batch_size, end)])

    def example(self, batch_size: int) -> Arrays:
        """One batch of real inputs, from the calibration split, repeated where that is too small."""
        split = self.split("calibration")
        return self.definition.preprocess(split.take(np.arange(batch_size) % len(split)).samples)


def define(reference: Mapping[str, Any], folder: Path) -> Workload:
    """The workload that a YAML's `workload:` names, without its data.

    `reference` is `{file: {path: workload.py, settings: {…}}}` or `{NAME: {settings}}` for a workload that
    pareflow brings. Raises: WorkloadError, SpecError.
    """
    step = Step.from_json(reference)
    if step.name == "file":
        path = folder / step.settings["path"]
        cls = _only_workload(_module(path), path)
        try:
            workload = cls.from_settings(step.settings.get("settings"))
        except ValidationError as error:
            problems = "; ".join(problem(e, cls.model_fields) for e in error.errors())
            raise WorkloadError(f"the settings of {path} must be valid", problems, "Mend the YAML") from error
        workload._file = step.settings["path"]
    else:
        found = find(WORKLOADS, step, "workload")
        assert isinstance(found, Workload)
        workload = found
    workload._folder = folder
    return workload


def load(reference: Mapping[str, Any], folder: Path) -> LoadedWorkload:
    """The workload with its data. Raises: WorkloadError, SplitError."""
    workload = define(reference, folder)
    try:
        splits = workload.data()
        data_digest = splits.check()
        sources = [file_digest(path) for path in (*workload.sources(), *workload.given().values())]
    except PareflowError:
        raise
    except Exception as error:
        raise WorkloadError(
            f"`data()` of the workload in {folder} must give its splits",
            f"it raised {type(error).__name__}: {error}",
            "Mend the workload",
        ) from error
    kind = workload.name if workload._file is None else Path(workload._file).name  # never the whole path
    settings = workload.model_dump(mode="json")
    name = digest(_code_digest(workload), kind, settings, data_digest, sources)
    return LoadedWorkload(workload, name, data_digest, splits)


def code_files(folder: Path) -> dict[str, Path]:
    """The Python files that a workload in `folder` may import relatively, by their paths from there.

    Those beside it, and in folders with Python files at every level; not what is hidden, nor an environment.
    """
    return {path.relative_to(folder).as_posix(): path for path in _code_below(folder, frozenset())}


def _code_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    inside = above | {folder.resolve()}
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        return  # nothing can be imported from there, either
    files = [e for e in found if e.name.endswith(".py") and not e.name.startswith(".") and e.is_file()]
    if above and (not files or any(entry.name == "pyvenv.cfg" for entry in found)):
        return
    yield from (folder / entry.name for entry in files)
    for entry in found:
        importable = entry.name.isidentifier() and entry.name != "__pycache__"
        if (
            importable and entry.is_dir() and (folder / entry.name).resolve() not in inside
        ):  # else it is a loop
            yield from _code_below(folder / entry.name, inside)


def imported_files(code: Iterable[Path]) -> dict[str, Path]:
    """The modules that this code imports, and that these import, by name, but for installed ones.

    Such lie on PYTHONPATH, or in an editable install. Imports within functions count.
    """
    found: dict[str, Path] = {}
    waiting, met = [name for path in code for name in _imports(path, "")], set[str]()
    while waiting:
        name = waiting.pop()
        path = None if name in met else _own_module(name)
        met.add(name)
        if path is not None:
            found[name] = path
            waiting += _imports(path, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _imports(path: Path, package: str) -> Iterator[str]:
    """The modules that a file of a package may import, each behind those that it lies in.

    Without a package, relative ones are left out.
    """
    with suppress(SyntaxError):  # whoever imports it is told
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (package or not node.level):
                with suppress(ImportError):  # too many dots
                    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                    names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            for name in names:
                yield from itertools.accumulate(name.split("."), "{}.{}".format)


def _own_module(name: str) -> Path | None:
    """The file of a module that is neither installed nor of pareflow; None where there is none."""
    top, *rest = name.split(".")
    try:
        spec = None if top == "pareflow" else importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None
    places = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    files = [
        file for place in places for file in (place / "__init__.py", place.with_name(place.name + ".py"))
    ]
    found = next((file for file in (files if rest else [Path(spec.origin or "")]) if file.is_file()), None)
    return None if found is None or found.suffix != ".py" or _installed(found) else found


def _installed(file: Path) -> bool:
    """Whether it came with Python or by an installer, so that its content changes with a version alone."""
    standard = Path(sysconfig.get_path("stdlib"))
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts) or file.is_relative_to(standard)


def _digests(files: Mapping[str, Path]) -> set[tuple[str, str]]:
    return {(name, file_digest(path)) for name, path in files.items()}


def _code_digest(workload: Workload) -> str:
    """A digest of the code of each class that the workload is made of, this module excepted."""
    classes = [cls for cls in type(workload).__mro__ if issubclass(cls, Workload) and cls is not Workload]
    files = [_code_of(cls) for cls in classes]
    files += [imported_files(code.values()) for code in files]
    return digest(sorted(set[tuple[str, str]]().union(*map(_digests, files))))


def _code_of(cls: type[Workload]) -> dict[str, Path]:
    file = _file_of(sys.modules[cls.__module__])
    made_of: tuple[ModuleType, ...] | None = vars(cls).get("made_of")  # not what a base says of itself
    if made_of is None:
        return code_files(file.parent)
    return {path.name: path for path in (file, *map(_file_of, made_of))}


def _file_of(module: ModuleType) -> Path:
    return Path(str(module.__file__))


_PACKAGE = "pareflow_workload_"


class _Uncached(SourceFileLoader):
    """Compiles code each time: bytecode beside it may be of other code, and no digest covers it."""

    def get_code(self, fullname: str) -> CodeType:
        """Neither reads nor writes `__pycache__`."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(MetaPathFinder):
    """Finds what a workload imports relatively, and loads it as the workload itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for every other module. Raises: ImportError where only bytecode is there."""
        if not fullname.startswith(_PACKAGE):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourcelessFileLoader):
            source = Path(spec.loader.path).with_suffix(".py")
            raise ImportError(f"{source} must be there, but only its bytecode is, which no digest covers")
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Uncached(fullname, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder())


def _module(path: Path) -> ModuleType:
    """Import a workload file as `package.stem`, its folder being the package: siblings import relatively.

    The package's name holds a digest of the folder's code, so that two workloads never share modules.
    """
    if not path.is_file():
        raise WorkloadError(
            "the workload file must exist", f"there is no {path}", "Mend `workload:` in the pipeline YAML"
        )
    if path.suffix != ".py":
        plain = f"Write `workload: {{onnx: {{model: {path.name}, arrays: DATA.npz}}}}` for a plain ONNX graph"
        mend = "Mend `workload:` in the pipeline YAML"
        raise WorkloadError(
            "a workload file must be Python", f"it is {path}", plain if path.suffix == ".onnx" else mend
        )
    code = digest(sorted(_digests(code_files(path.parent))))
    package_name = f"{_PACKAGE}{code[:16]}"
    name = f"{package_name}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    package = ModuleType(package_name)
    package.__path__ = [str(path.parent)]
    sys.modules[package_name] = package
    spec = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path.absolute())))
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise WorkloadError(
            f"{path} must be importable", f"it raised {type(error).__name__}: {error}", "Mend the workload"
        ) from error
    return module


def _only_workload(module: ModuleType, path: Path) -> type[Workload]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Workload) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise WorkloadError(
            f"{path} must define one subclass of pareflow.workload.Workload",
            f"it defines {len(found)}",
            "See `pareflow init`",
        )
    if missing := sorted(found[0].__abstractmethods__):
        raise WorkloadError(
            f"{found[0].__name__} in {path} must define every method of a workload",
            f"it lacks {', '.join(missing)}",
            "See `pareflow init`",
        )
    return found[0]
