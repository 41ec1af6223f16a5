"""Floating point of eight bits."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pareflow.model.quantization.calibration import PRODUCTS, Samples, check_varied, feeds, layers
from pareflow.model.quantization.static_int8 import Reader
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx


class Fp8(Technique):
    """Store and compute products in E4M3 floats: Q/DQ nodes around them, one scale per tensor.

    For devices with fp8 units (NVIDIA from compute capability 8.9 on), by a runtime that fuses such nodes.
    Elsewhere the same graph rounds to fp8 and computes in fp32: its quality can be measured there, its speed
    cannot. Speed: not measured, no such device was at hand.
    Source: Micikevicius et al., 2022, arXiv:2209.05433, section 3; ONNX Runtime's `quantize_static`, whose
    scales come from the activations' deviation.
    """

    name: ClassVar[str] = "fp8"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    samples: Samples = None

    def unfit(self) -> str | None:
        import torch

        if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
            return None
        return "no device here has fp8 units, so that int8 is as small and faster"

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        layers(network)
        samples = feeds(workload, self.samples, [node.name for node in network.graph.input])
        with tempfile.TemporaryDirectory() as folder:
            plain, prepared, quantized = (Path(folder) / f"{step}.onnx" for step in ("plain", "pre", "quant"))
            onnx.save_model(network, plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            check_varied(onnx.load_model(prepared), samples)
            quantize_static(
                prepared,
                quantized,
                Reader(samples),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(PRODUCTS),
                activation_type=QuantType.QFLOAT8E4M3FN,
                weight_type=QuantType.QFLOAT8E4M3FN,
                calibrate_method=CalibrationMethod.Distribution,
            )
            return onnx.load_model(quantized)
