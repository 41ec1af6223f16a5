"""Level 2: backends, which run the same network in another executable. One line per member."""

from pareflow.compiler.backend import Backend, Session
from pareflow.compiler.litert import LiteRt
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.compiler.openvino import OpenVino
from pareflow.compiler.tensorrt import TensorRt
from pareflow.compiler.torch_compile import TorchCompile
from pareflow.compiler.torch_eager import TorchEager

__all__ = [
    "Backend",
    "LiteRt",
    "OnnxRuntime",
    "OpenVino",
    "Session",
    "TensorRt",
    "TorchCompile",
    "TorchEager",
]
