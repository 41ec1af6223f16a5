"""Integers of eight bits, but for the layers that lose too much by them."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pareflow import large_graphs
from pareflow.errors import UnsuitableError
from pareflow.model.quantization.calibration import layers
from pareflow.model.quantization.static_int8 import Calibrated, StaticInt8
from pareflow.model.timings import Timings
from pareflow.network import onnxruntime_ports
from pareflow.workload import Arrays, LoadedWorkload

if TYPE_CHECKING:
    import onnx

ROUNDS = 30
"""How often two graphs are timed in turns."""


class MixedInt8(StaticInt8):
    """Static int8 in which layers go back to float until the quality lost is within `max_drop`.

    First those that gain most per millisecond: the gain is how much nearer the outputs come to the float
    network's, the cost how much slower batch 1 gets, both measured, on the search split and by sessions run
    in turns. Quality is the share of right answers.
    Source: Dong et al., 2019, arXiv:1905.03696, section 3 (order layers by sensitivity). Departure:
    sensitivity is measured, not read off the Hessian.
    """

    name: ClassVar[str] = "mixed_int8"
    measures: ClassVar[bool] = True

    max_drop: float = Field(default=0.005, ge=0, le=1, description="share of right answers that may be lost")
    search_samples: int = Field(
        default=500, ge=1, description="at most how many samples of the search split are asked"
    )

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        with tempfile.TemporaryDirectory() as folder:
            calibrated = Calibrated(network, workload, self, Path(folder))
            examined = _Examined(calibrated.prepared, workload, self.search_samples)
            timings = Timings(workload)
            graph, floats = calibrated.quantized(), list[str]()
            waiting: list[str] | None = None
            while (drop := examined.drop(graph)) > self.max_drop:
                waiting = _ranked(calibrated, graph, examined, timings) if waiting is None else waiting
                if not waiting:
                    raise _lost_elsewhere(drop, self.max_drop)
                floats.append(waiting.pop(0))
                graph = calibrated.quantized(floats)
            print(f"{self.name}: {', '.join(floats) or 'no layer'} in float, {drop:.4f} lost on search")
            return graph


@dataclass(frozen=True)
class _Answers:
    outputs: np.ndarray
    right: float


class _Examined:
    """Samples of the search split, and what the float network answers to them."""

    def __init__(self, original: "onnx.ModelProto", workload: LoadedWorkload, samples: int) -> None:
        self._workload = workload
        part = workload.split("search")
        self._part = part.take(np.arange(min(samples, len(part))))
        self._targets = self._part.targets
        self._original = self._answers(original)

    def drop(self, graph: "onnx.ModelProto") -> float:
        """The share of right answers that the graph loses; without labels, the float network's are right."""
        return self._original.right - self._answers(graph).right

    def error(self, graph: "onnx.ModelProto") -> float:
        """The squared distance of the graph's outputs to the float network's, as a share of their square."""
        theirs = self._original.outputs
        return float(np.square(self._answers(graph).outputs - theirs).sum() / np.square(theirs).sum())

    def one(self) -> Arrays:
        return self._workload.definition.preprocess(self._part.take(np.arange(1)).samples)

    def _answers(self, graph: "onnx.ModelProto") -> _Answers:
        run = session(graph)
        predictions, outputs = [], []
        for rows in np.array_split(np.arange(len(self._part)), max(1, len(self._part) // 32)):
            given = run(self._workload.definition.preprocess(self._part.take(rows).samples))
            predictions.append(self._workload.definition.predicted(given))
            outputs.append(self._workload.definition.judged(given).reshape(len(rows), -1))
        predicted = np.concatenate(predictions)
        if self._targets is None:
            self._targets = predicted  # the first asked is the float network
        if predicted.shape != self._targets.shape or predicted.dtype.kind == "f":
            raise UnsuitableError(
                "predictions must be classes, each right or wrong",
                f"`postprocess` gives {predicted.dtype} of shape {predicted.shape}",
                "Use static_int8, and let the SLA judge its quality",
            )
        return _Answers(np.concatenate(outputs), float(np.mean(predicted == self._targets)))


def _ranked(
    calibrated: Calibrated, graph: "onnx.ModelProto", examined: _Examined, timings: Timings
) -> list[str]:
    """The layers, the one whose return to float gains most per millisecond first."""
    whole, feed = examined.error(graph), examined.one()

    def worth(layer: str) -> float:
        reverted = calibrated.quantized([layer])
        slower_ms = timings.of(layer, lambda: _slower_ms(graph, reverted, feed))
        return (whole - examined.error(reverted)) / max(slower_ms, 1e-3)

    return sorted(layers(calibrated.prepared), key=worth, reverse=True)


def _slower_ms(former: "onnx.ModelProto", latter: "onnx.ModelProto", feed: Arrays) -> float:
    """The median of how much longer the latter takes, the two run in turns."""
    runs = [session(former), session(latter)]

    def timed_ms(run: Callable[[Arrays], Arrays]) -> float:
        began = time.perf_counter()
        run(feed)
        return 1000 * (time.perf_counter() - began)

    pairs = [[timed_ms(run) for run in runs] for _ in range(ROUNDS)]
    return statistics.median(after - before for before, after in pairs[ROUNDS // 5 :])


def session(graph: "onnx.ModelProto") -> Callable[[Arrays], Arrays]:
    """The graph as a function of named arrays of any batch, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with large_graphs.openable(graph) as source:
        opened = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in opened.get_outputs()]
    return onnxruntime_ports(opened).fitted(
        lambda feeds: dict(zip(names, opened.run(names, feeds), strict=True))
    )


def _lost_elsewhere(drop: float, max_drop: float) -> UnsuitableError:
    return UnsuitableError(
        f"at most {max_drop:g} of the answers may be lost with every layer in float",
        f"{drop:.4f} are lost by what else is quantized: sums, pools and the like",
        "Set `operators: products`, or allow a larger `max_drop`",
    )
