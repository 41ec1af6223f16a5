"""NNCF's quantization with accuracy control, which turns layers back to float: the SLA says what may be lost.

Source: docs.openvino.ai, "Quantizing with Accuracy Control"; accuracy is its example's validation function.
"""

from collections.abc import Iterable

import nncf
import numpy as np
import openvino
from job import Batch, Job, main


def make(job: Job) -> None:
    """The quantized OpenVINO model."""
    model = openvino.Core().read_model(job.model)
    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(job.batches()),
        nncf.Dataset(job.labelled(), lambda item: item[0]),
        validation_fn=accuracy,
        max_drop=job.max_drop,
        model_type=nncf.ModelType.TRANSFORMER if job.tokens else None,
    )
    openvino.save_model(quantized, job.output / "model.xml")


def accuracy(compiled: openvino.CompiledModel, data: Iterable[tuple[Batch, int]]) -> float:
    """The share of samples whose highest logit is their class."""
    output = compiled.output(0)
    right = [int(np.argmax(compiled(batch)[output])) == label for batch, label in data]
    return float(np.mean(right))


if __name__ == "__main__":
    main(make)
