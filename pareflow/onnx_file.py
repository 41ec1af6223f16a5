"""A workload of plain files: an ONNX graph and arrays. No torch, no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from pareflow.errors import WorkloadError
from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    import onnx


class OnnxFile(Workload):
    """`workload: {onnx: {model: …, arrays: …}}`: a network with one input, the rows of an array in a `.npz`.

    Paths start from the folder of the pipeline YAML.
    """

    name: ClassVar[str] = "onnx"
    serving_requires: ClassVar[tuple[str, ...]] = ()

    model: str = Field(description="the original: an ONNX file with one input")
    arrays: str = Field(description="a .npz file with the data")
    input_name: str = Field(description="the name of the network's input")
    samples: str = Field(default="samples", description="the array of inputs, one per row")
    targets: str | None = Field(
        default="targets", description="the array of targets; null where the data have no labels"
    )
    scale: float = Field(default=1.0, gt=0, description="an input is (sample - zero_point) * scale")
    zero_point: float = Field(default=0.0, description="the sample that stands for zero")
    training: int = Field(default=1, ge=1, description="how many samples techniques may train on")
    calibration: int = Field(default=100, ge=1, description="how many samples calibrate")
    search: int = Field(default=200, ge=1, description="how many samples rank candidates; the others decide")
    predicts: Literal["class", "value"] = Field(
        default="class", description="the position of the largest output, or the outputs themselves"
    )
    variants: dict[str, str] = Field(
        default_factory=dict, description="ready-made ONNX files by name, for the technique `given`"
    )

    def data(self) -> Splits:
        """The rows, shuffled by the seed and cut. Raises: WorkloadError where an array is missing."""
        stored = np.load(self._existing(self.arrays))
        missing = [name for name in (self.samples, self.targets) if name is not None and name not in stored]
        if missing:
            raise WorkloadError(
                f"{self.arrays} must hold the arrays that the YAML names",
                f"it lacks {', '.join(missing)}, and holds {', '.join(stored)}",
                "Mend `samples` or `targets` (`targets: null` where there are no labels)",
            )
        rows = Split(stored[self.samples], None if self.targets is None else stored[self.targets])
        verdict = max(len(rows) - self.training - self.calibration - self.search, 0)
        return Splits.cut(
            rows, calibration=self.calibration, search=self.search, verdict=verdict, seed=self.seed
        )

    def network(self) -> "onnx.ModelProto":
        import onnx

        return onnx.load_model(self._existing(self.model))

    def preprocess(self, samples: Samples) -> Arrays:
        """`(samples - zero_point) * scale` in 32 bits; integers stay as they are where neither is set."""
        raw = np.asarray(samples)
        if (self.scale, self.zero_point) == (1.0, 0.0):
            return {self.input_name: raw}
        return {self.input_name: ((raw.astype(np.float32) - self.zero_point) * self.scale).astype(np.float32)}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        first = next(iter(outputs.values()))
        predictions: np.ndarray = first.argmax(axis=-1) if self.predicts == "class" else first
        return predictions

    def sources(self) -> list[Path]:
        return [self._existing(self.model)]

    def given(self) -> Mapping[str, Path]:
        return {name: self._existing(path) for name, path in self.variants.items()}

    def _existing(self, path: str) -> Path:
        found = self.folder / path
        if not found.is_file():
            raise WorkloadError(
                "every file of an `onnx` workload must exist",
                f"there is no {found}",
                "Paths start from the folder of the pipeline YAML",
            )
        return found
