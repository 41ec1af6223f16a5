"""Level 2: backends, which run the same network in another executable. One line per member."""

from pareflow.compiler.backend import Backend, Session
from pareflow.compiler.coreml import CoreMl
from pareflow.compiler.executorch import ExecuTorch
from pareflow.compiler.litert import LiteRt
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.compiler.openvino import OpenVino
from pareflow.compiler.tensorrt import TensorRt
from pareflow.compiler.torch_compile import TorchCompile
from pareflow.compiler.torch_eager import TorchEager
from pareflow.compiler.tvm import Tvm

__all__ = [
    "Backend",
    "CoreMl",
    "ExecuTorch",
    "LiteRt",
    "OnnxRuntime",
    "OpenVino",
    "Session",
    "TensorRt",
    "TorchCompile",
    "TorchEager",
    "Tvm",
]
