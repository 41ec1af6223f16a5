"""Rows of a dataset to the four splits of a classification workload."""

import base64
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pareflow.catalog import unknown
from pareflow.errors import PareflowError, WorkloadError
from pareflow.huggingface.hub import folder_of, missing, summary
from pareflow.workload import Split, Splits

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_CSV = {"keep_default_na": False}
"""The text "None" or "NA" is a text; pandas would read it as a missing value."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold the sample and its label, whether samples are images, and the classes in order."""

    sample: str
    label: str
    images: bool
    classes: Sequence[str]


@dataclass(frozen=True)
class Sizes:
    """How many samples each purpose takes. `verdict` None: the whole test split, or a third of the data."""

    calibration: int
    search: int
    verdict: int | None


@contextmanager
def tables_of_files(files: Mapping[str, str], base: Path, encoding: str) -> Iterator[Any]:
    """The `datasets.DatasetDict` of local files, one per split. Raises: WorkloadError."""
    paths = {split: base / Path(file).expanduser() for split, file in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise WorkloadError(
                "every data file must exist",
                f"there is no {path}",
                "Mend `files:`, or name a hub dataset instead",
            )
    suffixes = {path.suffix.lower() for path in paths.values()}
    if len(suffixes) > 1 or not suffixes <= set(_FORMATS):
        raise WorkloadError(
            f"data files must be of one format of {', '.join(_FORMATS)}",
            f"they end in {', '.join(sorted(suffixes))}",
            "Convert them",
        )
    builder, options = _FORMATS[suffixes.pop()]
    options = options | (_CSV if builder == "csv" else {})
    options = options | ({} if builder == "parquet" else {"encoding": encoding})
    with _loaded(
        builder, data_files={split: str(path) for split, path in paths.items()}, **options
    ) as tables:
        yield tables


@contextmanager
def tables_of_dataset(name: str, base: Path, config: str | None, revision: str | None) -> Iterator[Any]:
    """The `datasets.DatasetDict` of a local folder or of a hub repository. Raises: as `hub.folder_of`."""
    folder = folder_of(name, base, "dataset", revision)
    with _loaded(str(folder), name=config) as tables:
        yield tables


@contextmanager
def _loaded(source: str, **options: Any) -> Iterator[Any]:
    """What `datasets` makes of local files. Its Arrow files go with the context: no stale cache is met."""
    try:
        import datasets
    except ImportError as error:
        raise missing("datasets") from error
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with TemporaryDirectory(prefix="pareflow-") as cache:
            with _files_left_open():
                tables = datasets.load_dataset(source, cache_dir=cache, **options)
            yield tables
    except PareflowError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        with _files_left_open():
            traceback.clear_frames(cause.__traceback__)
        raise WorkloadError(
            "the data must be readable by `datasets`",
            f"it raised {summary(cause)}",
            "Mend the files, or `encoding:`, `dataset_config:`",
        ) from error
    finally:
        if not hidden:
            datasets.enable_progress_bars()


@contextmanager
def _files_left_open() -> Iterator[None]:
    """No warnings of the files that the csv reader of `datasets` does not close."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def rows(tables: Any, split: str, columns: Columns, base: Path) -> Split:
    """The samples and class ids of one split. Raises: WorkloadError.

    `base` is where relative image paths start from.
    """
    labels, samples = column(tables, split, columns.label), column(tables, split, columns.sample)
    table = tables[split]
    if columns.images:
        samples = _images(table, columns.sample, base)
    if not all(isinstance(sample, str) for sample in samples):
        found = next(sample for sample in samples if not isinstance(sample, str))
        raise WorkloadError(
            f"every row of `{split}` must have a text", f"`{columns.sample}` has {found!r}", "Mend the data"
        )
    feature_names = getattr(table.features[columns.label], "names", None)
    return Split(samples, class_ids(labels, columns.classes, feature_names))


def column(tables: Any, split: str, name: str) -> Any:
    """The values of one column of one split, in order. Raises: WorkloadError where either is unknown."""
    if split not in tables:
        raise WorkloadError("the split must exist", unknown(split, list(tables), "split"), "Mend the YAML")
    if name not in tables[split].column_names:
        raise WorkloadError(
            f"`{split}` must have the columns of the YAML",
            unknown(name, tables[split].column_names, "column"),
            "Mend the YAML",
        )
    return tables[split][name]


def class_ids(
    labels: Sequence[Any], classes: Sequence[str], feature_names: Sequence[str] | None = None
) -> np.ndarray:
    """Positions in `classes`, int64, of labels that are names or numbers. Raises: WorkloadError.

    Where a dataset numbers its labels by names of its own, and these are the network's too, the names
    decide: the two may count in different orders. Where both have names, and others, numbers tell nothing.
    """
    position = {name.casefold(): index for index, name in enumerate(classes)}
    if feature_names is not None and {name.casefold() for name in feature_names} <= set(position):
        labels = [feature_names[label] if label is not None and label >= 0 else label for label in labels]
    elif feature_names is not None and _named(feature_names) and _named(classes):
        raise WorkloadError(
            "dataset and network must call their classes the same: each may count them in its own order",
            f"the dataset has {', '.join(feature_names[:5])}, and the network {', '.join(classes[:5])}",
            "Give `label_names`: a file with the network's classes in its order, by the dataset's names",
        )
    ids = [position.get(label.casefold(), label) if isinstance(label, str) else label for label in labels]
    wrong = [
        label for label in ids if not isinstance(label, (int, np.integer)) or not 0 <= label < len(classes)
    ]
    if wrong:
        raise WorkloadError(
            f"every label must be one of the network's {len(classes)} classes",
            f"{len(wrong)} of {len(ids)} are not, the first is {wrong[0]!r}",
            f"The classes are {', '.join(classes[:5])}, …; give `label_names`, or another `verdict_split`",
        )
    return np.array(ids, dtype=np.int64)


def _named(classes: Sequence[str]) -> bool:
    """Whether these names say what the classes are, and are no numbers nor transformers' `LABEL_0`."""
    return any(not re.fullmatch(r"(label_)?\d+", name.casefold()) for name in classes)


def split_rows(rows: Split, test: Split | None, sizes: Sizes, seed: int, key: Callable[[str], str]) -> Splits:
    """The four splits of labelled rows. The verdict comes from `test` where there is one.

    Samples of equal `key` count as one: it stays in the verdict split, else at its first place.
    Raises: WorkloadError where too few are left to cut.
    """
    test = None if test is None else distinct(test, key)
    rows = distinct(rows, key, test)
    cut = (len(rows) // 3 if sizes.verdict is None else sizes.verdict) if test is None else 0
    if len(rows) <= sizes.calibration + sizes.search + cut:
        raise WorkloadError(
            f"{sizes.calibration} calibration, {sizes.search} search, {cut} verdict samples must leave some",
            f"there are {len(rows)} distinct ones to cut from",
            "Lower `calibration_samples`, `search_samples` or `verdict_samples`",
        )
    splits = Splits.cut(rows, calibration=sizes.calibration, search=sizes.search, verdict=cut, seed=seed)
    return splits if test is None else replace(splits, verdict=_at_most(test, sizes.verdict, seed))


def distinct(data: Split, key: Callable[[str], str], without: Split | None = None) -> Split:
    """The samples whose key is not in `without`, each once."""
    seen = set() if without is None else set(map(key, without.samples))
    kept = []
    for index, sample in enumerate(data.samples):
        if key(sample) not in seen:
            seen.add(key(sample))
            kept.append(index)
    return data.take(np.array(kept, dtype=np.int64))


def text_key(text: str) -> str:
    """Equal for texts that differ only in case or white space: to most tokenizers, one text."""
    return " ".join(text.split()).casefold()


def _at_most(data: Split, count: int | None, seed: int) -> Split:
    if count is None or count >= len(data):
        return data
    return data.take(np.sort(np.random.default_rng(seed).permutation(len(data))[:count]))


def _images(table: Any, column: str, base: Path) -> list[str]:
    """The base64 text of each image file: what a caller sends over HTTP, whatever the image's size."""
    import datasets

    if not isinstance(table.features[column], datasets.Image):
        return [_encoded((base / path).read_bytes()) for path in table[column]]
    files = table.cast_column(column, datasets.Image(decode=False))[column]
    return [_encoded(file["bytes"] or Path(file["path"]).read_bytes()) for file in files]


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
