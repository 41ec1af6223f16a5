"""Sessions of ONNX Runtime: arrays passed, bound, or at addresses that stay."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from pareflow import network
from pareflow.measurement import Ran
from pareflow.workload import Arrays

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
MOST = 128
"""Sets of input shapes that a session keeps buffers and a graph for."""


class OnnxRuntimeSession:
    """An `InferenceSession`; inputs that the graph does not take are left out."""

    def __init__(self, session: Any, threads: int, precision: str, notes: str = "") -> None:
        self._session, self._threads = session, threads
        self._precision, self._notes = precision, notes
        self._outputs = [node.name for node in session.get_outputs()]
        self._fitted = network.onnxruntime_ports(session).fitted(self._run)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return self._fitted(feeds)

    def _run(self, feeds: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def ran(self) -> Ran:
        import onnxruntime

        provider = self._session.get_providers()[0]
        return Ran(
            "onnxruntime",
            onnxruntime.__version__,
            self._precision,
            provider.removesuffix("ExecutionProvider"),
            self._threads,
            self._notes,
        )


class BoundSession(OnnxRuntimeSession):
    """Inputs and outputs bound to the session: on a GPU outputs stay there until they are asked for."""

    def _run(self, feeds: Arrays) -> Arrays:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))


class FixedSession(OnnxRuntimeSession):
    """Inputs and outputs on `device` at addresses that stay, one set per set of input shapes.

    A CUDA graph needs that: it is captured at the second request of a shape, and replayed after. The runtime
    keeps a graph for as long as the session lives, so that there are at most MOST of them: further shapes are
    computed without. Threads wait for each other.
    Source: ONNX Runtime, "CUDA execution provider", Using CUDA graphs.
    """

    def __init__(
        self, session: Any, threads: int, precision: str, notes: str = "", device: str = "cuda"
    ) -> None:
        super().__init__(session, threads, precision, notes)
        self._device, self._turn = device, threading.Lock()
        self._bound: dict[Shapes, tuple[Any, dict[str, Any], Any]] = {}

    def _run(self, feeds: Arrays) -> Arrays:
        given = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        with self._turn:
            return self._computed(given)

    def _computed(self, given: Arrays) -> Arrays:
        shapes = tuple((name, array.shape) for name, array in given.items())
        if shapes not in self._bound:
            if len(self._bound) >= MOST:
                return self._without_graph(given)
            self._bound[shapes] = self._bind(given)
        binding, inputs, options = self._bound[shapes]
        for name, value in inputs.items():
            value.update_inplace(given[name])
        self._session.run_with_iobinding(binding, options)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _without_graph(self, given: Arrays) -> Arrays:
        binding, _ = self._placed(given)
        self._once(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _placed(self, given: Arrays) -> tuple[Any, dict[str, Any]]:
        """A binding, and the inputs on the device that are bound in it."""
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        inputs = {
            name: OrtValue.ortvalue_from_numpy(array.copy(), self._device, 0) for name, array in given.items()
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        return binding, inputs

    def _bind(self, given: Arrays) -> tuple[Any, dict[str, Any], Any]:
        """The binding, the inputs to write into, and the options that name this graph."""
        from onnxruntime import OrtValue

        binding, inputs = self._placed(given)
        for name, value in zip(self._outputs, self._once(binding), strict=True):
            kept = OrtValue.ortvalue_from_shape_and_type(value.shape(), value.element_type(), self._device, 0)
            binding.bind_ortvalue_output(name, kept)
        return binding, inputs, _graph(len(self._bound) + 1)  # 0 is the runtime's own

    def _once(self, binding: Any) -> Any:
        """The outputs of one run that captures nothing: their shapes are known by it alone."""
        for name in self._outputs:
            binding.bind_output(name, self._device, 0)
        self._session.run_with_iobinding(binding, _graph(-1))
        return binding.get_outputs()


def _graph(number: int) -> Any:
    """Run options that name a CUDA graph; -1 is none."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options
