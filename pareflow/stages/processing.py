"""A package's own pre- and postprocessing, in a run of another workload: a model is judged as it serves.

The samples, the targets, the slices and the metric stay the run's.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.errors import StepFailedError
from pareflow.measuring.quality import Answers, predict
from pareflow.serving.model import ARRAYS, LISTED, kind_of
from pareflow.store import Store
from pareflow.variant import digest
from pareflow.workload import Arrays, LoadedWorkload, Split, SplitName, define

_FILE = "processing.json"
_WAY_OUT = "Compare by hand what the two answer, or register the old model again with the new processing"


def key_of(document: Mapping[str, Any]) -> str:
    """Names the processing of a package, by its `model.json`: its code, its files and its settings."""
    files = {name: sha for name, sha in document["files"].items() if name.startswith("workload/")}
    return digest("processing", files, document["workload"], document["samples"])


def keep(store: Store, package: Path, document: Mapping[str, Any]) -> str:
    """The processing of a verified package, copied into the store; its key."""
    key = key_of(document)

    def write(into: Path) -> None:
        shutil.copytree(package / "workload", into / "workload")
        told = {"workload": document["workload"], "samples": document["samples"]}
        (into / _FILE).write_text(json.dumps(told))

    store.ensure(key, write)
    return key


def reference(entry: Path) -> tuple[Mapping[str, Any], Path]:
    """What defines the workload of kept processing, and the folder that it starts from."""
    return json.loads((entry / _FILE).read_text())["workload"], entry / "workload"


def processed(workload: LoadedWorkload, entry: Path) -> LoadedWorkload:
    """The run's samples and targets, fed and read by kept processing.

    Raises: StepFailedError where it cannot be loaded here, or does not take these samples.
    """
    with _its_own_code():
        own = define(*reference(entry))
    kind = json.loads((entry / _FILE).read_text())["samples"]
    splits = workload.splits
    taken = {name: _as_taken(getattr(splits, name), kind) for name in ("calibration", "search", "verdict")}
    with _its_own_code():
        own.preprocess(taken["calibration"].take(np.arange(1)).samples)
    return replace(workload, definition=own, splits=replace(splits, **taken))


def answers(
    run: Callable[[Arrays], Arrays],
    workload: LoadedWorkload,
    own: LoadedWorkload,
    split: SplitName,
    batch_size: int,
    outputs: bool,
) -> Answers:
    """What is answered to the split by a network with its own processing; classes by the run's positions.

    `own` is what `processed` made of `workload`; the network's `outputs` are kept where they are asked for.
    Raises: StepFailedError where a class is none of the run's.
    """
    found = predict(run, own, split, batch_size, outputs=outputs)
    with _its_own_code():
        before = own.definition.class_names()
    now = workload.definition.class_names()
    return replace(found, predictions=_renamed(found.predictions, before, now))


def _renamed(predictions: np.ndarray, before: Sequence[str] | None, now: Sequence[str] | None) -> np.ndarray:
    """Positions among the former names as positions among these; unchanged where either is unknown."""
    if before is None or now is None or list(before) == list(now) or predictions.dtype.kind not in "iu":
        return predictions
    positions = {name: position for position, name in enumerate(now)}
    table = np.array([positions.get(name, -1) for name in before])
    renamed: np.ndarray = table[predictions]
    if (renamed < 0).any():
        lost = before[int(predictions[renamed < 0].flat[0])]
        raise StepFailedError(
            "every class that a packaged model answers must be one of this pipeline's",
            f"`{lost}` is none of them",
            _WAY_OUT,
        )
    return renamed


def _as_taken(split: Split, kind: str) -> Split:
    """The split with samples of the package's type. Raises: StepFailedError where that changes some."""
    samples = split.samples
    here = kind_of(samples)
    if _of_any_width(here) == _of_any_width(kind):
        return split
    if _is_of_numbers(here) and _is_of_numbers(kind):
        held = np.asarray(samples).astype(kind)
        if held.dtype.kind == "f" or np.array_equal(held, np.asarray(samples)):
            return replace(split, samples=held)
    raise StepFailedError(
        "a packaged model must take this pipeline's samples",
        f"it takes samples of {kind}, and these are of {here}",
        _WAY_OUT,
    )


def _of_any_width(kind: str) -> str:
    """The kind, but for how long its longest text is: that changes with the data."""
    return re.sub(r"(?<=[<>]U)[0-9]+", "", kind)


def _is_of_numbers(kind: str) -> bool:
    """Whether samples of this kind are an array of numbers, all of one size."""
    return kind != "text" and not kind.startswith(("[", ARRAYS, LISTED)) and np.dtype(kind).kind in "biuf"


@contextmanager
def _its_own_code() -> Iterator[None]:
    """Whatever a package's own code raises, a missing import too, is a failure of that variant."""
    try:
        yield
    except Exception as error:
        raise StepFailedError(
            "a packaged model must be fed and read by its own processing",
            f"here that raised {type(error).__name__}: {error}",
            f"Install what it needs. {_WAY_OUT}",
        ) from error
