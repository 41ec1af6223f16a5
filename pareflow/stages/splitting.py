"""Split inference: every cut measured here, and the one to take for a link and a device."""

import json
import shutil
from pathlib import Path
from typing import Any

from pareflow import network
from pareflow.catalog import BACKENDS
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import InputError, PareflowError, VariantError
from pareflow.hardware.budget import does_not_run, least_slower
from pareflow.hardware.device import device_lock
from pareflow.intervals import pooled_quantile_interval
from pareflow.measurement import CONFIDENCE, Interval, Measurement
from pareflow.measuring.arena import Arena, Contestant, Protocol
from pareflow.runtime.placement import Halves, Link, Placement, choose, placed
from pareflow.serving import halves
from pareflow.serving.output import check_new, new_folder
from pareflow.stages.baseline import train
from pareflow.stages.instruments import ceilings
from pareflow.stages.jobs import SPLIT_FEEDS, artifact_size_mib
from pareflow.stages.run import Run
from pareflow.stages.timing import Inputs, conditions, document_of, instrument
from pareflow.variant import digest, sources

MOST = 8
"""Cuts that are measured at most: each is two processes."""

TIMING = Protocol()


def split(
    run: Run, link: Link, *, most: int = MOST, into: Path | None = None, at: int | None = None
) -> dict[str, Any]:
    """The document of every placement, and which is chosen; both halves of one written where asked.

    The network is the original's plain ONNX export, as ONNX Runtime runs it with the run's first thread
    count. `at` is the row whose halves `into` gets; by default the chosen one's. Where the target is a device
    profile, its least time against this machine's is taken for how much slower the device is.
    Raises: InputError, VariantError where the whole network cannot be timed.
    """
    if into is not None:
        check_new(into)
    link = for_target(run, link)
    key, entry = cut(run, most)
    told = json.loads((entry / "cuts.json").read_text())
    found = [placed(row, link) for row in measure(run, key, entry, told["rows"])]
    chosen = choose(found)
    if into is not None:
        write(run, entry, found, chosen if at is None else at, into)
    return {
        "pipeline": run.spec.name,
        "run_id": run.id,
        "environment": {**run.environment.to_json(), "fingerprint": run.environment.fingerprint},
        "batch_size": run.spec.sla.batch_size,
        "link": link.model_dump(),
        "device": run.spec.target.profile.name if run.spec.target.profile else None,
        "device_is_estimated": link.slower != 1,
        "placements": [{**placement.to_json(), "chosen": i == chosen} for i, placement in enumerate(found)],
        "chosen": found[chosen].halves.layer,
        "left_out": told["left_out"],
        "written": None if into is None else str(into),
    }


def for_target(run: Run, link: Link) -> Link:
    """The link with a device as slow as the target's profile says. Raises: InputError, BusyMachineError."""
    profile, backend = run.spec.target.profile, OnnxRuntime.name
    if profile is None:
        return link
    if link.slower != 1:
        raise InputError(
            "one of --slower and --target must be given", "both are", "Leave one out: both say how slow it is"
        )
    rates = ceilings(run, run.threads[0])
    slower = least_slower(profile, backend, rates["matrix_gflops"], rates["copy_gb_per_s"])
    if slower is None:
        found = does_not_run(profile, backend) or f"{profile.name} tells no fp32 rate for it"
        raise InputError(f"the device must run its half in {backend}", found, "Give --slower by hand")
    return link.model_copy(update={"slower": slower})


def cut(run: Run, most: int) -> tuple[str, Path]:
    """The store's entry of all halves, made once, and its key."""
    train(run)
    backend = OnnxRuntime(threads=run.threads[0])
    code = sources("runtime/splitting.py", "runtime/remote.py", "serving/halves.py")
    asked = {"backend": backend.step.to_json(), "batch_size": run.spec.sla.batch_size, "most": most}
    versions = (network.code_version(backend.form), BACKENDS[backend.name].code_version())
    key = digest("cut", run.facts.digest, asked, SPLIT_FEEDS, code, versions)

    def make() -> None:
        with device_lock(run.spec.target.device, exclusive=False):
            run.job("cut", {"key": key, **asked}, f"cut-{run.id}")

    return key, run.made(key, make)


def measure(run: Run, key: str, entry: Path, rows: list[dict[str, Any]]) -> list[Halves]:
    """Every row with what its halves take here, all of them timed side by side. Kept in the store.

    A half that fails makes its row one with a reason (law 7). Raises: VariantError of the whole network.
    """
    measured = digest("split", key, run.environment.fingerprint, document_of(TIMING), instrument())
    told = run.kept(measured, "split.json", lambda: _timed(run, key, entry, len(rows)))
    return [_halves(row, number, told) for number, row in enumerate(rows)]


def _timed(run: Run, key: str, entry: Path, count: int) -> dict[str, Any]:
    """Measurements and failures by `number/side`."""
    sides = [(number, side) for number in range(count) for side in ("device", "server")]
    names = {digest(key, *side): "{:02}/{}".format(*side) for side in sides if _runs(entry, *side)}
    contestants = [_contestant(entry, variant, name) for variant, name in names.items() if name != _TWIN]
    with device_lock(run.spec.target.device, exclusive=True) as descriptor:
        told = conditions(run, Inputs(run.spec.sla.batch_size), descriptor)
        with Arena(contestants, **{**told, "feeds": entry / "feeds.npz"}) as arena:
            found = arena.measure(TIMING)
            failed = dict(arena.failures)
    return {
        "measurements": {names[variant]: measurement.to_json() for variant, measurement in found.items()},
        "failures": {names[variant]: _words(error) for variant, error in failed.items()},
    }


_WHOLE, _TWIN = "00/device", "01/server"
"""The same network, on either side: it is timed once."""


def _runs(entry: Path, number: int, side: str) -> bool:
    return halves.Half.read(entry / f"{number:02}" / side).artifact


def _contestant(entry: Path, variant: str, name: str) -> Contestant:
    half = halves.Half.read(entry / name)
    artifact = entry / name / "artifact"
    return Contestant(variant, artifact, half.backend, artifact_size_mib(artifact))


def _halves(row: dict[str, Any], number: int, told: dict[str, Any]) -> Halves:
    if _WHOLE in told["failures"]:
        found = told["failures"][_WHOLE]
        raise VariantError("the whole network must be timed", found, "It is what every split is held to")
    confidence = 1 - (1 - CONFIDENCE) / len(told["measurements"])

    def p50(name: str) -> Interval | None:
        """All halves' bounds hold together (Bonferroni): the best of many cuts is chosen by them."""
        document = told["measurements"].get(_WHOLE if name == _TWIN else name)
        if document is None:
            return None
        return pooled_quantile_interval(Measurement.from_json(document).loads_ms, 0.5, confidence)

    names = [f"{number:02}/{side}" for side in ("device", "server")]
    failed = [
        f"{name.partition('/')[2]}: {told['failures'][name]}" for name in names if name in told["failures"]
    ]
    reason = "; ".join(failed) or None
    device, server = map(p50, names)
    fields = {**row, "crossing": tuple(row["crossing"])}
    return Halves(**fields, device=device, server=server, reason=reason)


def write(run: Run, entry: Path, found: list[Placement], at: int, into: Path) -> None:
    """Both halves of a row, each in a folder of its own. Raises: InputError, StoreError."""
    if not 0 <= at < len(found):
        raise InputError(
            "--at must be the number of a row", f"{at} is not one of 0 to {len(found) - 1}", "See the table"
        )
    with new_folder(into) as made:
        for side in ("device", "server"):
            shutil.copytree(entry / f"{at:02}" / side, made / side)


def _words(error: PareflowError) -> str:
    return f"{type(error).__name__}: {error.must}, but {error.found}"
