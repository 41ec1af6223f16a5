"""Readings of different lengths, and whether their sum is above zero: a network whose output is a boolean."""

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    import onnx

LONGEST = 6


class Ragged(Workload):
    """Samples are an array of arrays, or a list of them."""

    in_list: bool = Field(default=False, description="whether samples are a list")
    any_length: bool = Field(default=False, description="whether the graph takes others than the longest")

    def data(self) -> Splits:
        generator = np.random.default_rng(self.seed)
        lengths = generator.integers(1, LONGEST + 1, 60)
        rows = [generator.normal(size=length).astype(np.float32) for length in lengths]
        samples = np.empty(len(rows), dtype=object)
        samples[:] = rows
        targets = np.asarray([int(row.sum() > 0) for row in rows])
        given: Any = rows if self.in_list else samples
        return Splits.cut(Split(given, targets), calibration=10, search=10, verdict=10, seed=self.seed)

    def network(self) -> "onnx.ModelProto":
        from onnx import TensorProto, helper

        nodes = [
            helper.make_node("ReduceSum", ["readings", "axes"], ["sum"]),
            helper.make_node("Greater", ["sum", "zero"], ["output"]),
        ]
        constants = [
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ]
        length = "length" if self.any_length else LONGEST
        readings = helper.make_tensor_value_info("readings", TensorProto.FLOAT, ["batch", length])
        output = helper.make_tensor_value_info("output", TensorProto.BOOL, ["batch", 1])
        graph = helper.make_graph(nodes, "ragged", [readings], [output], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def preprocess(self, samples: Samples) -> Arrays:
        """Shorter ones are filled up by zeros. They must come in what `data` gives."""
        assert isinstance(samples, list) is self.in_list
        readings = np.zeros((len(samples), LONGEST), np.float32)
        for row, sample in zip(readings, samples, strict=True):
            assert isinstance(sample, np.ndarray)
            assert sample.dtype == np.float32
            row[: len(sample)] = sample
        return {"readings": readings}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        predictions: np.ndarray = outputs["output"][:, 0].astype(int)
        return predictions
