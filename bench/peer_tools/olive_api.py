"""Olive's Python API: `olive.run` on a configuration with its static quantization of ONNX files.

Source: microsoft.github.io/Olive, "Python Interface" and "Custom Scripts" (a registered data set), and the
defaults of its pass `OnnxStaticQuantization` (s8 activations). There is no search: in 0.13 all of its points
but the first fail.
"""

import shutil
from pathlib import Path
from typing import Any

import olive
from job import Batch, Job, main
from olive.data.registry import Registry


class Samples:
    """A data set as torch's loaders take it: inputs without their batch axis, and a label, unread."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Batch, int]:
        return {name: array[0] for name, array in self._batches[index].items()}, 0


def make(job: Job) -> None:
    """The model of the workflow's one output."""
    Registry.register_dataset("calibration_inputs")(lambda **_: Samples(job.batches()))
    found = olive.run(configuration(job), disable_telemetry=True).get_best_candidate()
    made = Path(found.model_path)
    for file in made.parent.glob(f"{made.stem}.onnx*") if made.is_file() else made.glob("*.onnx*"):
        shutil.copy(file, job.output / file.name)


def configuration(job: Job) -> dict[str, Any]:
    """One pass over the ONNX file, on this processor."""
    data = {"name": "calibration", "load_dataset_config": {"type": "calibration_inputs"}}
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(job.model)},
        "data_configs": [data],
        "passes": {"quantization": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "output_dir": str(job.output / "made"),
        "cache_dir": str(job.output / "cache"),
    }


if __name__ == "__main__":
    main(make)
