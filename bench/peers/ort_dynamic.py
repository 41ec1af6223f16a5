"""ONNX Runtime's own dynamic quantization: one call, no data.

Source: onnxruntime.ai, "Quantize ONNX models": pre-process first, then `quantize_dynamic` as it is.
"""

from job import Job, main
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process


def make(job: Job) -> None:
    """The quantized file, made of the pre-processed one."""
    prepared = job.output / "prepared.onnx"
    quant_pre_process(str(job.model), str(prepared))
    quantize_dynamic(str(prepared), str(job.output / "model.onnx"))


if __name__ == "__main__":
    main(make)
