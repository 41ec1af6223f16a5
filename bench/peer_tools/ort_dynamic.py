"""ONNX Runtime's own dynamic quantization: one call, no data.

Source: onnxruntime.ai, "Quantize ONNX models": pre-process first, then `quantize_dynamic` as it is.
"""

from job import Job, main
from onnxruntime.quantization import quantize_dynamic
from ort_prepared import prepared


def make(job: Job) -> None:
    """The quantized file, made of the pre-processed one."""
    quantize_dynamic(str(prepared(job)), str(job.output / "model.onnx"))


if __name__ == "__main__":
    main(make)
