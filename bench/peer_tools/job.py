"""What every peer's script is handed on its command line: files, and nothing of pareflow.

`python PEER.py MODEL.onnx CALIBRATION.npz VALIDATION.npz OUTPUT MAX_DROP`: an `.npz` holds arrays named
`number/input`, one batch per number, and for validation `labels`, one class per sample. The peer leaves its
`model.onnx`, or `model.xml` and `model.bin`, in the folder OUTPUT.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """The original's ONNX file, real inputs, and the folder for what the peer makes of them."""

    model: Path
    calibration: Path
    validation: Path
    output: Path
    max_drop: float
    """Share of right answers that the SLA lets be lost."""

    def batches(self) -> list[Batch]:
        """The calibration inputs, a sample at a time."""
        return _batches(self.calibration)

    def labelled(self) -> list[tuple[Batch, int]]:
        """The validation inputs, a sample at a time, each with its class."""
        with np.load(self.validation) as stored:
            labels = stored["labels"].tolist()
        return list(zip(_batches(self.validation), labels, strict=True))

    @property
    def tokens(self) -> bool:
        """Whether the network is a transformer, as its users know: here, whether it takes integers."""
        return all(array.dtype.kind == "i" for array in self.batches()[0].values())


def _batches(path: Path) -> list[Batch]:
    found: dict[int, Batch] = {}
    with np.load(path) as stored:
        for key in stored.files:
            number, slash, name = key.partition("/")
            if slash:
                found.setdefault(int(number), {})[name] = stored[key]
    return [found[number] for number in sorted(found)]


def flags() -> set[str]:
    """The processor's instructions: what users look up to choose a peer's preset for their machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def main(make: Callable[[Job], None]) -> None:
    """Run a peer on the command line's job."""
    model, calibration, validation, output = map(Path, sys.argv[1:5])
    make(Job(model, calibration, validation, output, float(sys.argv[5])))
