"""ONNX Runtime's own static quantization: Q/DQ, activations u8 and weights s8, scales per channel.

Source: onnxruntime.ai, "Quantize ONNX models": pre-process first, then `quantize_static` with a data reader;
MinMax is the default; U8S8 is the first choice on x86 processors, with `reduce_range` where they lack VNNI
(its u8×s8 products saturate), and `per_channel` where accuracy matters.
"""

from collections.abc import Iterator

from job import Batch, Job, flags, main
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives one batch after the other, then None."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches: Iterator[Batch] = iter(batches)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


def make(job: Job) -> None:
    """The quantized file, made of the pre-processed one."""
    prepared = job.output / "prepared.onnx"
    quant_pre_process(str(job.model), str(prepared))
    quantize_static(
        str(prepared),
        str(job.output / "model.onnx"),
        Reader(job.batches()),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not any("vnni" in flag for flag in flags()),
    )


if __name__ == "__main__":
    main(make)
