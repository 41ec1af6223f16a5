"""Monitoring of a served version: what it is compared with, and a process beside it that compares."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import TimedOutError
from pareflow.isolation import Child, Limits
from pareflow.monitoring import comparing
from pareflow.monitoring.rules import InputDrift, Rules, VariantDrift
from pareflow.serving.request_log import name_of
from pareflow.stages.baseline import train
from pareflow.stages.building import make
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step, digest
from pareflow.workload import Arrays

CALIBRATION = 2000
"""Samples that live data are compared with, at most."""


@dataclass(frozen=True)
class Original:
    """The original as ONNX Runtime runs it in fp32, and the calibration data as it takes them."""

    artifact: Path
    backend: Step
    calibration: Path


def original(run: Run) -> Original:
    """What live requests are answered again by; made where the store lacks it. Raises: PareflowError."""
    train(run)
    recipe = Recipe((), OnnxRuntime(threads=1).step)
    row = make(run, Row(recipe, "baseline"))
    key = digest("calibration inputs", run.facts.digest, CALIBRATION)
    if run.store.find(key) is None:
        arguments = {"key": key, "limit": CALIBRATION}
        run.job("calibration_inputs", arguments, f"calibration-{run.spec.name}")
    artifact, calibration = run.store.find(str(row.id)), run.store.find(key)
    assert artifact is not None and calibration is not None  # both have just been made
    return Original(artifact, recipe.backend, calibration / "feeds.npz")


class Comparer:
    """The running process that answers kept requests again; its files appear in `folder`."""

    def __init__(self, child: Child, folder: Path) -> None:
        self._child, self.folder = child, folder
        self._began = name_of(time.time() - comparing.BACK_S)

    def reference(self) -> Arrays | None:
        """The compared calibration data, or None until they are there. Raises: what the process died of."""
        self.check()
        path = self.folder / comparing.REFERENCE
        return _loaded(path) if path.exists() else None

    def news(self, after: str) -> tuple[Arrays, str]:
        """All rows since the file of this name, and the last file's. Raises: what the process died of."""
        self.check()
        for read in comparing.results(self.folder):
            if read.name <= max(after, self._began):  # by an earlier look, or of an earlier time
                read.unlink(missing_ok=True)
        paths = comparing.results(self.folder, after)
        return comparing.joined([_loaded(path) for path in paths]), paths[-1].name if paths else after

    def check(self) -> None:
        """Raises: what the process died of, if it did."""
        try:
            self._child.result(0)
        except TimedOutError:
            return  # it runs, as it should


@contextmanager
def compared(
    rules: Rules,
    source: Original,
    package: Path,
    requests: Path,
    into: Path,
    served: tuple[str, str],
    log: Path,
) -> Iterator[Comparer]:
    """A process that compares what `served` (model and version) was asked, until the end of the context."""
    into.mkdir(parents=True, exist_ok=True)
    (into / comparing.REFERENCE).unlink(missing_ok=True)  # an earlier one's, by other rules perhaps
    arguments: dict[str, Any] = {
        "package": str(package),
        "original": str(source.artifact),
        "backend": source.backend.to_json(),
        "calibration": str(source.calibration),
        "requests": str(requests),
        "into": str(into),
        "model": served[0],
        "version": served[1],
        "watched": _watched(rules),
    }
    with Child("pareflow.monitoring.comparing:follow", arguments, Limits(threads=1), log) as child:
        yield Comparer(child, into)


def _watched(rules: Rules) -> Mapping[str, Any]:
    drift, variant = rules.input_drift or InputDrift(), rules.variant_drift or VariantDrift()
    return {
        "features": drift.features,
        "projections": drift.projections,
        "embedding": drift.embedding,
        "tolerance": variant.tolerance,
        "keep_days": rules.keep_days,
    }


def _loaded(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
