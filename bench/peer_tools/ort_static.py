"""ONNX Runtime's own static quantization: Q/DQ, activations u8 and weights s8, scales per channel.

Source: onnxruntime.ai, "Quantize ONNX models": pre-process first, then `quantize_static` with a data reader;
MinMax and Q/DQ are its defaults; `reduce_range` is for processors without VNNI, whose products saturate.
Departure: its default is s8 activations and a scale per tensor; u8 is the faster on x86, and scales per
channel the more accurate, so that this is the strongest of its documented settings here.
"""

from collections.abc import Iterator

from job import Batch, Job, flags, main
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from ort_prepared import prepared


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives one batch after the other, then None."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches: Iterator[Batch] = iter(batches)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


def make(job: Job) -> None:
    """The quantized file, made of the pre-processed one."""
    quantize_static(
        str(prepared(job)),
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
