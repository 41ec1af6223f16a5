"""Weights of four bits."""

import copy
import logging
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pareflow.errors import UnsuitableError
from pareflow.model.quantization.floats import check_floats
from pareflow.model.quantization.gemm import gemm_as_matmul
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx


class Int4(Technique):
    """Store the weights of matrix products in four bits, one scale per block of them: an eighth of the size.

    For transformers: convolutions stay float. Size, not time, on processors: MatMulNBits unpacks as it goes
    (measured by `bench/techniques.py`).
    Source: ONNX Runtime's `MatMulNBitsQuantizer`: round to nearest (Dettmers and Zettlemoyer, 2022,
    arXiv:2212.09720, section 2), or half-quadratic (Badri and Shaji, 2023, Half-Quadratic Quantization of
    Large Machine Learning Models, mobiusml.github.io/hqq_blog).
    """

    name: ClassVar[str] = "int4"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnx-ir")

    method: Literal["rtn", "hqq"] = Field(
        default="rtn",
        description="round to nearest, or scales and offsets that fit outliers worse, others better",
    )
    block_size: Literal[16, 32, 64, 128] = Field(default=32, description="weights that share a scale")
    symmetric: bool = Field(default=False, description="no offset per block; `rtn` only")
    products: Literal["float32", "int8"] = Field(
        default="float32", description="what products are computed in; int8 rounds activations too"
    )
    embeddings: bool = Field(default=False, description="embedding tables too; `rtn` only")

    @model_validator(mode="after")
    def _only_rtn(self) -> Self:
        if self.method == "hqq" and (self.symmetric or self.embeddings):
            raise ValueError("`symmetric` and `embeddings` must be false where `method` is hqq")
        return self

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        from onnx import helper
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        check_floats(network, self.name)
        changed = copy.deepcopy(network)
        gemm_as_matmul(changed)
        quantizer = MatMulNBitsQuantizer(changed, algo_config=self._configuration())
        logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)  # a line per node
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
            quantizer.process()
        packed: onnx.ModelProto = quantizer.model.model
        products = [node for node in packed.graph.node if node.op_type == "MatMulNBits"]
        if not products:
            raise UnsuitableError(
                "the graph must hold a product with a constant matrix",
                f"it holds {', '.join(sorted({node.op_type for node in network.graph.node}))}",
                "Use static_int8, which quantizes convolutions",
            )
        if self.products == "int8":
            for node in products:
                node.attribute.append(helper.make_attribute("accuracy_level", 4))
        return packed

    def _configuration(self) -> Any:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            HQQWeightOnlyQuantConfig,
        )

        if self.method == "hqq":
            return HQQWeightOnlyQuantConfig(block_size=self.block_size, bits=4)
        return DefaultWeightOnlyQuantConfig(
            block_size=self.block_size,
            is_symmetric=self.symmetric,
            op_types_to_quantize=("MatMul", "Gather") if self.embeddings else ("MatMul",),
        )
