"""Floating point of sixteen bits."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pareflow import large_graphs
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx


class Fp16(Technique):
    """Store in half precision, and compute in it where the runtime does; inputs and outputs stay fp32.

    Half the size. ONNX Runtime computes it in fp32 on x86-64 processors: no faster there.
    Source: Micikevicius et al., 2018, arXiv:1710.03740; ONNX Runtime's float16 converter.
    """

    name: ClassVar[str] = "fp16"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            large_graphs.save(network, path)  # of one in memory it infers shapes through one protobuf
            converted: onnx.ModelProto = convert_float_to_float16(str(path), keep_io_types=True)
        return converted
