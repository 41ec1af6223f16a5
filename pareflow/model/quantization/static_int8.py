"""Integers of eight bits, the activations' scales found beforehand on calibration data."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import Arrays, LoadedWorkload

if TYPE_CHECKING:
    import onnx

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


class StaticInt8(Technique):
    """Insert QuantizeLinear and DequantizeLinear around what computes: activations u8, weights s8.

    Source: Jacob et al., 2018, arXiv:1712.05877, section 2; calibration by entropy: Migacz, 2017, 8-bit
    Inference with TensorRT. ONNX Runtime's `quantize_static`. Activations are unsigned, since signed ones
    run 2 to 4 times slower than fp32 on x86 (measured, facts/backends).
    """

    name: ClassVar[str] = "static_int8"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    method: Literal["minmax", "entropy", "percentile"] = Field(
        default="minmax", description="how the range of an activation is chosen"
    )
    per_channel: bool = Field(default=True, description="one scale per output channel of a weight")
    reduce_range: bool = Field(
        default=False, description="weights in 7 bits, where the processor adds products of bytes in 16 bits"
    )
    samples: int = Field(default=128, ge=1, description="how many calibration samples are looked at")

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            plain, prepared, quantized = (Path(folder) / f"{step}.onnx" for step in ("plain", "pre", "quant"))
            onnx.save_model(network, plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantized,
                _Reader(workload, self.samples, [node.name for node in network.graph.input]),
                quant_format=QuantFormat.QDQ,
                per_channel=self.per_channel,
                reduce_range=self.reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[_METHODS[self.method]],
            )
            return onnx.load_model(quantized)


class _Reader:
    """Calibration feeds one by one, as ONNX Runtime's calibrators ask for them.

    They are preprocessed as one batch, so that texts have one length: histograms need equal shapes.
    """

    def __init__(self, workload: LoadedWorkload, samples: int, inputs: list[str]) -> None:
        batch = next(workload.feeds("calibration", samples, samples))
        self._rows: Iterator[Arrays] = (
            {name: batch[name][i : i + 1] for name in inputs} for i in range(len(batch[inputs[0]]))
        )

    def get_next(self) -> Arrays | None:
        return next(self._rows, None)
