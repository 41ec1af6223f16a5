"""OpenVINO on the CPU."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pareflow import network
from pareflow.compiler import packed_openvino
from pareflow.compiler.backend import Backend, place
from pareflow.compiler.paged import Paged
from pareflow.hardware import probe
from pareflow.measurement import Ran
from pareflow.workload import Arrays

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
MOST = 64
"""Sets of input shapes that an executable is kept for."""


class OpenVino(Paged, Backend):
    """Run the OpenVINO model.

    `precision` is a request: where the processor has no bf16 instructions OpenVINO computes in f32. What
    ran is read back from the executed graph (law 10). With static shapes there is one executable for each
    of the last `MOST` shapes that were met, and the first request of a shape waits for it.
    """

    name: ClassVar[str] = "openvino"
    form: ClassVar[network.Form] = "openvino"
    requires: ClassVar[tuple[str, ...]] = ("openvino",)

    precision: Literal["f32", "bf16"] = Field(default="f32", description="of what is not quantized")
    hint: Literal["latency", "throughput"] = Field(default="latency", description="what it is tuned for")
    streams: int = Field(default=1, ge=1, description="parts of a batch that run side by side")
    static_shapes: bool = Field(default=False, description="an executable for each shape that is met")
    packed: bool = Field(default=False, description="weights entropy-coded on disk, and decoded at load")

    @model_validator(mode="after")
    def _a_thread_for_each_stream(self) -> Self:
        if self.streams > self.threads:
            raise ValueError(f"`streams <= threads` must hold, but {self.streams} > {self.threads}")
        if self.static_shapes and self.streams > 1:
            raise ValueError("`static_shapes` must go with one stream: parts of a batch differ in shape")
        return self

    def unfit(self) -> str | None:
        if self.precision == "bf16" and not probe.has_bf16():
            return "this processor has no bf16 instructions, so that OpenVINO would compute in f32"
        return self.pages_unfit()

    @classmethod
    def devices(cls) -> Mapping[str, str]:
        """Processors, graphics processors (`GPU`) and neural ones (`NPU`) that OpenVINO has a plugin for."""
        if cls.unavailable() is not None:
            return {}
        core = network.openvino_core()
        return {name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices}

    def compile(self, source: Path, into: Path) -> None:
        if self.packed:
            packed_openvino.write(source / network.FILES["openvino"], into / packed_openvino.FILE)
            return
        for file in (source / "model.xml", source / "model.bin"):
            place(file, into)

    def load(self, artifact: Path) -> "OpenVinoSession | StaticSession":
        configuration = {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": self.hint.upper(),
            "NUM_STREAMS": self.streams,
            "ENABLE_CPU_PINNING": False,
        }
        core, path = network.openvino_core(), artifact / network.FILES["openvino"]
        packed = packed_openvino.read(artifact / packed_openvino.FILE) if self.packed else (path,)
        model = core.read_model(*packed)

        def compiled(model: Any) -> OpenVinoSession:
            made = core.compile_model(model, "CPU", configuration)
            return OpenVinoSession(made, self.streams, self.paged())

        return StaticSession(model, compiled) if self.static_shapes else compiled(model)


class OpenVinoSession:
    """A compiled model, and an inference request per stream; threads wait for each other."""

    def __init__(self, compiled: Any, streams: int, notes: str = "") -> None:
        self._compiled, self._notes = compiled, notes
        self._turn = threading.Lock()
        self._requests = [compiled.create_infer_request() for _ in range(streams)]
        self._ports = network.openvino_ports(compiled.inputs)
        self._fitted = self._ports.fitted(self._run)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return self._fitted(feeds)

    def _run(self, feeds: Arrays) -> Arrays:
        with self._turn:
            if len(self._requests) == 1 or self._ports.batch_size is not None:
                return _named(self._requests[0].infer(feeds, share_inputs=True))
            return self._in_parts(feeds)

    def _in_parts(self, feeds: Arrays) -> Arrays:
        parts = _shared(feeds, len(self._requests))
        running = list(zip(self._requests, parts, strict=False))
        with ExitStack() as ended:  # where one fails, too: the next client needs them all
            for request, part in running:
                request.start_async(part, share_inputs=True)
                ended.callback(request.wait)
        answers = [_named(request.results) for request, _ in running]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def ran(self) -> Ran:
        import openvino

        return Ran(
            "openvino",
            openvino.__version__.split("-")[0],
            self._executed_precision(),
            "CPU",
            int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            self._notes,
        )

    def _executed_precision(self) -> str:
        """The narrowest type among the executed layers that compute: int8 before bf16 before f32."""
        narrow = {"i8": "int8", "u8": "int8", "bf16": "bfloat16", "f16": "float16"}
        layers = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ops()]
        seen = {
            _text(layer["runtimePrecision"]) for layer in layers if _text(layer["layerType"]) in _COMPUTING
        }
        return next((shown for kind, shown in narrow.items() if kind in seen), "float32")


class StaticSession:
    """A session for each set of input shapes, compiled when a request first has it.

    There are at most `MOST`: the one that was asked longest ago goes.
    """

    def __init__(self, model: Any, compiled: Callable[[Any], OpenVinoSession]) -> None:
        self._model, self._compiled = model, compiled
        self._sessions: OrderedDict[Shapes, OpenVinoSession] = OrderedDict()
        self._turn = threading.Lock()
        self._ports = network.openvino_ports(model.inputs)
        self._fitted = self._ports.fitted(self._run)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return self._fitted(feeds)

    def _run(self, feeds: Arrays) -> Arrays:
        return self._session(feeds).run(feeds)

    def _session(self, feeds: Arrays) -> OpenVinoSession:
        """The one for these shapes; threads wait while one is compiled."""
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        with self._turn:
            if shapes not in self._sessions:
                self._ports.check(feeds)  # a model that is given a senseless shape may compile, and answer
                model = self._model.clone()
                model.reshape(dict(shapes))
                self._sessions[shapes] = self._compiled(model)
            self._sessions.move_to_end(shapes)
            if len(self._sessions) > MOST:
                self._sessions.popitem(last=False)
            return self._sessions[shapes]

    def ran(self) -> Ran:
        """Of the last shape asked for; before the first request of the model as it is."""
        with self._turn:
            last = next(reversed(self._sessions.values()), None) or self._compiled(self._model)
        return last.ran()


def _shared(feeds: Mapping[str, np.ndarray], parts: int) -> list[Arrays]:
    """The samples of a batch in at most so many parts, none of them empty."""
    samples = min(len(array) for array in feeds.values())
    cuts = [np.array_split(array, min(parts, samples)) for array in feeds.values()]
    return [dict(zip(feeds, part, strict=True)) for part in zip(*cuts, strict=True)]


def _named(results: Any) -> Arrays:
    return {port.get_any_name(): np.array(array) for port, array in results.items()}


_COMPUTING = ("convolution", "fullyconnected", "matmul", "rnnseq")


def _text(value: Any) -> str:
    """A runtime attribute, plain or wrapped, in lower case."""
    return str(getattr(value, "value", value)).lower()
