"""OpenVINO on the CPU."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pareflow import network
from pareflow.compiler import packed_openvino
from pareflow.compiler.backend import Backend
from pareflow.hardware import probe
from pareflow.measurement import Ran
from pareflow.workload import Arrays


class OpenVino(Backend):
    """Run the OpenVINO model with one latency-bound stream.

    `precision` is a request: where the processor has no bf16 instructions OpenVINO computes in f32. What
    ran is read back from the executed graph (law 10).
    """

    name: ClassVar[str] = "openvino"
    form: ClassVar[network.Form] = "openvino"
    requires: ClassVar[tuple[str, ...]] = ("openvino",)

    precision: Literal["f32", "bf16"] = Field(default="f32", description="of what is not quantized")
    packed: bool = Field(default=False, description="weights entropy-coded on disk, and decoded at load")

    def unfit(self) -> str | None:
        if self.precision == "bf16" and not probe.has_bf16():
            return "this processor has no bf16 instructions, so that OpenVINO would compute in f32"
        return None

    def compile(self, source: Path, into: Path) -> None:
        if self.packed:
            packed_openvino.write(source / network.FILES["openvino"], into / packed_openvino.FILE)
            return
        for file in (source / "model.xml", source / "model.bin"):
            os.link(file, into / file.name)

    def load(self, artifact: Path) -> "OpenVinoSession":
        import openvino

        configuration = {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        core, model = openvino.Core(), artifact / network.FILES["openvino"]
        if self.packed:
            model = core.read_model(*packed_openvino.read(artifact / packed_openvino.FILE))
        compiled = core.compile_model(model, "CPU", configuration)
        return OpenVinoSession(compiled)


class OpenVinoSession:
    """A compiled model and one inference request."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._inputs = frozenset(name for port in compiled.inputs for name in port.names)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        results = self._request.infer(given, share_inputs=True)
        return {port.get_any_name(): np.array(array) for port, array in results.items()}

    def ran(self) -> Ran:
        import openvino

        return Ran(
            "openvino",
            openvino.__version__.split("-")[0],
            self._executed_precision(),
            "CPU",
            int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        )

    def _executed_precision(self) -> str:
        """The narrowest type among the executed layers that compute: int8 before bf16 before f32."""
        narrow = {"i8": "int8", "u8": "int8", "bf16": "bfloat16", "f16": "float16"}
        layers = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ops()]
        seen = {
            _text(layer["runtimePrecision"]) for layer in layers if _text(layer["layerType"]) in _COMPUTING
        }
        return next((shown for kind, shown in narrow.items() if kind in seen), "float32")


_COMPUTING = ("convolution", "fullyconnected", "matmul", "rnnseq")


def _text(value: Any) -> str:
    """A runtime attribute, plain or wrapped, in lower case."""
    return str(getattr(value, "value", value)).lower()
