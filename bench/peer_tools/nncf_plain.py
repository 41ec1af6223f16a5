"""NNCF's post-training quantization of the OpenVINO model: `nncf.quantize`.

Source: docs.openvino.ai, "Basic Quantization Flow": a dataset and nothing else, with `model_type` for
transformers, as it says they need.
"""

import nncf
import openvino
from job import Job, main


def make(job: Job) -> None:
    """The quantized OpenVINO model; 300 of the calibration inputs at most, NNCF's default."""
    model = openvino.Core().read_model(job.model)
    model_type = nncf.ModelType.TRANSFORMER if job.tokens else None
    quantized = nncf.quantize(model, nncf.Dataset(job.batches()), model_type=model_type)
    openvino.save_model(quantized, job.output / "model.xml")


if __name__ == "__main__":
    main(make)
