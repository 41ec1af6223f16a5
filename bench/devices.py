"""The keyword network for each device of `configs/devices/`: what it needs there (estimated), its quality.

As its makers quantized it, in ONNX Runtime; and the fp32 one as LiteRT quantizes it, where a device has that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from claims import Claim, main
from pipeline_run import DATA_DIR

from pareflow import spec
from pareflow.catalog import complete
from pareflow.compiler import LiteRt
from pareflow.stages import baseline, building, optimization, searching
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe

ROOT = Path(__file__).parents[1] / "configs"
CONFIG = ROOT / "keywords" / "pipeline.yaml"
ACCURACY = 0.90
LITERT = Recipe((), LiteRt(precision="static_int8").step)


def measure(quick: bool) -> Sequence[Claim]:
    """One row per device and need that has a limit; accuracy on the verdict split, measured here."""
    devices = sorted((ROOT / "devices").glob("*.yaml"))
    if quick:
        devices = [path for path in devices if path.stem == "microcontroller"]
    return [claim for path in devices for claim in _claims(path)]


def _claims(path: Path) -> Iterator[Claim]:
    run = Run.open(spec.read(CONFIG, path), CONFIG, DATA_DIR, target=path)
    baseline.train(run)
    (given,) = searching.first_rows(run)
    yield from _needed(run, given, path.stem)
    profile = run.spec.target.profile
    if profile is not None and LiteRt.name in profile.backends:
        yield from _needed(run, Row(complete(LITERT)), f"{path.stem} by litert")


def _needed(run: Run, candidate: Row, device: str) -> Iterator[Claim]:
    row = optimization.make(run, candidate)
    if row.fit is None:
        yield Claim(device, 1, None, "variants", 0, "at least", note=row.reason or "")
        return
    for need in row.fit.needs:
        if need.limit:
            name = f"{device}, {need.name}"
            yield Claim(name, need.limit, need.needs, need.unit, 1, "at most", note=need.words)
    yield _accuracy(run, row, device)


def _accuracy(run: Run, row: Row, device: str) -> Claim:
    name, note = f"{device}, accuracy", f"{row.label}, on this machine; {row.fit.runs_by if row.fit else ''}"
    if row.status != "ok":
        return Claim(name, ACCURACY, None, "of 1", 0, "at least", note=row.reason or "")
    found = building.evaluate(run, replace(row), "verdict").quality
    assert found is not None  # it has just been evaluated
    return Claim(name, ACCURACY, found.value, "of 1", found.samples, "at least", note=note)


if __name__ == "__main__":
    main("devices", measure)
