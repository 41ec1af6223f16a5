"""The file that ONNX Runtime's tools quantize: pre-processed, as their documentation says to do first."""

from pathlib import Path

from job import Job
from onnxruntime.quantization.shape_inference import quant_pre_process


def prepared(job: Job) -> Path:
    """With symbolic shapes where they can be inferred, else without."""
    path = job.output / "prepared.onnx"
    try:
        quant_pre_process(str(job.model), str(path))
    except Exception as error:  # it raises no narrower one
        print(f"without symbolic shapes: {error}")
        quant_pre_process(str(job.model), str(path), skip_symbolic_shape=True)
    return path
