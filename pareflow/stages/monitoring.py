"""Monitoring of a served version: what it is compared with, and a process beside it that compares."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pareflow import spec
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import InputError, TimedOutError
from pareflow.isolation import Child, Limits
from pareflow.monitoring import comparing
from pareflow.monitoring.rules import InputDrift, Rules, VariantDrift
from pareflow.remote_store import opened
from pareflow.serving.model import told
from pareflow.serving.request_log import name_of, note_days
from pareflow.stages import jobs
from pareflow.stages.building import make, variant_of
from pareflow.stages.run import Row, Run
from pareflow.store import Store
from pareflow.variant import Recipe, digest
from pareflow.workload import Arrays

CALIBRATION = 2000
"""Samples that live data are compared with, at most."""
AS_IT_ANSWERS = Recipe((), OnnxRuntime(threads=1).step)
"""The original as ONNX Runtime runs it in fp32."""
NICENESS = 10


@dataclass(frozen=True)
class Original:
    """The original as ONNX Runtime runs it, and the calibration data as it takes them."""

    artifact: Path
    calibration: Path


def answering_key(workload: str) -> str:
    """Names the original as ONNX Runtime runs it, by what it was trained from alone: a later version opens
    the same file, when the data may be others and it can be made no more."""
    return digest("the original as it answers", jobs.original(workload).id)


def stored(store: Store, workload: str) -> Original | None:
    """What live requests of a version are answered again by; `workload` is the digest of what its original
    was trained from. None where the store lacks a part of it."""
    artifact = store.find(answering_key(workload))
    calibration = store.find(jobs.calibration_key(workload, CALIBRATION))
    if artifact is None or calibration is None:
        return None
    return Original(artifact, calibration / "feeds.npz")


def made(run: Run, workload: str) -> Original:
    """The same, made of the trained original; nothing is trained beside what is served.

    Raises: InputError where this run's original is another, or is not trained; PareflowError.
    """
    must = "live requests must be compared with the original that their version was made of"
    if run.facts.digest == workload:
        if run.store.find(jobs.original(workload).id) is None:
            raise InputError(
                must,
                "the store lacks it, and the monitor trains nothing",
                f"Run `pareflow optimize {run.config}`, which makes it again",
            )
        make(run, Row(AS_IT_ANSWERS, "baseline"))
        run.job("calibration_inputs", {"limit": CALIBRATION}, f"calibration-{run.spec.name}")
    compiled = run.store.find(variant_of(AS_IT_ANSWERS, workload).id)
    if compiled is not None:
        source = compiled
        run.store.ensure(answering_key(workload), lambda into: OnnxRuntime(threads=1).compile(source, into))
    found = stored(run.store, workload)
    if found is None:
        raise InputError(
            must,
            "the store lacks it, and the pipeline's data, code or settings are others by now",
            f"Retrain, or give {run.config} what it was made of again",
        )
    return found


def follow(
    config: str, data_dir: str, package: str, by_sla: bool, requests: str, into: str, **served: Any
) -> None:
    """For a process of its own: bring the original of the packaged version, then compare what is kept.

    `by_sla`: whether the limit of disagreement is the SLA's. Raises: as `made`, and what `Run.open` does.
    """
    with suppress(OSError):
        os.nice(NICENESS)  # the server goes first
    workload = str(told(Path(package)).get("workload_digest"))
    source = stored(opened(Path(data_dir) / "store"), workload)
    max_drop: float | None = None
    if source is None or by_sla:
        run = Run.open(spec.read(Path(config)), Path(config), Path(data_dir))
        source, max_drop = source or made(run, workload), run.share_lost
    backend = AS_IT_ANSWERS.backend.to_json()
    artifact, calibration = str(source.artifact), str(source.calibration)
    comparing.follow(package, artifact, backend, calibration, requests, into, max_drop=max_drop, **served)


class Comparer:
    """The running process that answers kept requests again; its files appear in `folder`."""

    def __init__(self, child: Child, folder: Path) -> None:
        self._child, self.folder = child, folder
        self._began = name_of(time.time() - comparing.BACK_S)
        self._read: list[Path] | None = None

    def reference(self) -> Arrays | None:
        """The compared calibration data, or None until they are there. Raises: what the process died of."""
        self.check()
        path = self.folder / comparing.REFERENCE
        return _loaded(path) if path.exists() else None

    def news(self, after: str) -> tuple[Arrays, str]:
        """All rows since the file of this name, and the last file's. Raises: what the process died of."""
        self.check()
        for path in self._done(after):
            path.unlink(missing_ok=True)
        self._read = comparing.results(self.folder)
        last = self._read[-1].name if self._read else after
        return comparing.joined([_loaded(path) for path in self._read]), last

    def _done(self, after: str) -> list[Path]:
        """What the look before has read. At first that is told by the names, which an earlier process gave;
        from then on not, since the clock may be set back."""
        if self._read is None:
            until = max(after, self._began)
            return [path for path in comparing.results(self.folder) if path.name <= until]
        return self._read if self._read and self._read[-1].name == after else []

    def check(self) -> None:
        """Raises: what the process died of, if it did."""
        try:
            self._child.result(0)
        except TimedOutError:
            return  # it runs, as it should


@contextmanager
def compared(
    rules: Rules,
    config: Path,
    data_dir: Path,
    package: Path,
    requests: Path,
    into: Path,
    served: tuple[str, str],
    log: Path,
) -> Iterator[Comparer]:
    """A process that compares what `served` (model and version) was asked, until the end of the context."""
    comparing.make_private(into)
    (into / comparing.REFERENCE).unlink(missing_ok=True)  # an earlier one's, by other rules perhaps
    note_days(into, rules.keep_days)
    drift = rules.variant_drift
    arguments: dict[str, Any] = {
        "config": str(config),
        "data_dir": str(data_dir),
        "package": str(package),
        "by_sla": drift is not None and drift.max_disagreement is None,
        "requests": str(requests),
        "into": str(into),
        "model": served[0],
        "version": served[1],
        "watched": _watched(rules),
    }
    with Child("pareflow.stages.monitoring:follow", arguments, Limits(threads=1), log) as child:
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
