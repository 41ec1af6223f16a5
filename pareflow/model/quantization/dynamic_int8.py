"""Integers of eight bits, the activations' scales found at run time."""

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pareflow import large_graphs
from pareflow.errors import UnsuitableError
from pareflow.model.quantization.floats import check_floats
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx


class DynamicInt8(Technique):
    """Store the weights of matrix products in int8 and quantize activations as they come.

    Right for transformers. Convolutions stay in floats: in int8 they are many times slower than fp32
    (ConvInteger has no fast kernel). One scale holds for the whole batch, so that an answer depends on the
    samples beside it: quality is evaluated in batches of the SLA's size.
    Source: Jacob et al., 2018, arXiv:1712.05877, section 2; ONNX Runtime's `quantize_dynamic`.
    """

    name: ClassVar[str] = "dynamic_int8"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    per_channel: bool = Field(default=True, description="one scale per output channel of a weight")
    reduce_range: bool = Field(
        default=False, description="weights in 7 bits, where the processor adds products of bytes in 16 bits"
    )

    @property
    def mixes_samples(self) -> bool:
        return True

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.registry import IntegerOpsRegistry

        check_floats(network, self.name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quantized.onnx"
            quantize_dynamic(
                copy.deepcopy(network),  # it writes into what it is given
                path,
                op_types_to_quantize=[name for name in IntegerOpsRegistry if name != "Conv"],
                per_channel=self.per_channel,
                reduce_range=self.reduce_range,
                weight_type=QuantType.QInt8,
                use_external_data_format=large_graphs.is_large(network),
                extra_options={
                    "DefaultTensorType": onnx.TensorProto.FLOAT
                },  # of what no shape inference reaches
            )
            quantized = onnx.load_model(path)
        _check_stored(quantized)
        return quantized


def _check_stored(quantized: "onnx.ModelProto") -> None:
    """Raises: UnsuitableError where nothing was quantized. A vector alone is a row of zero points."""
    from onnx import TensorProto

    integers = (TensorProto.INT8, TensorProto.UINT8)
    if not any(w.data_type in integers and len(w.dims) > 1 for w in quantized.graph.initializer):
        raise UnsuitableError(
            "the graph must hold a product with weights that lie in the file as floats",
            "no weight was stored in eight bits",
            "Quantize the float network (not after bf16), or use static_int8, which takes convolutions",
        )
