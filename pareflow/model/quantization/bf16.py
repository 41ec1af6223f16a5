"""Weights in bfloat16."""

import copy
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pareflow.errors import UnsuitableError
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx


class Bf16(Technique):
    """Store the weights in bfloat16: half the file; what computes decides whether it is faster.

    ONNX Runtime has no bf16 kernels on processors: it casts the weights back once, when it loads, and
    computes in fp32, exactly as fast as before. OpenVINO computes in bf16 where its `precision` says so and
    the processor can. Vectors (biases, norms) and constants stay fp32: they are small, and bf16 has no room
    for fp32's largest numbers, which masks use.
    Source: Kalamkar et al., 2019, arXiv:1905.12322, section 3. Departure: weights only.
    """

    name: ClassVar[str] = "bf16"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnx", "ml_dtypes")

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        import onnx
        from onnx import helper, numpy_helper

        changed = copy.deepcopy(network)
        floats = onnx.TensorProto.FLOAT
        weights = [w for w in changed.graph.initializer if w.data_type == floats and len(w.dims) > 1]
        if not weights:
            raise UnsuitableError(
                "the graph must hold fp32 weights of two axes or more",
                "it holds none",
                "Drop the candidate: there is nothing to store in fewer bits",
            )
        for position, weight in enumerate(weights):
            narrow = _rounded(numpy_helper.to_array(weight), f"{weight.name}_bf16")
            cast = helper.make_node("Cast", [narrow.name], [weight.name], to=floats)
            changed.graph.initializer.remove(weight)
            changed.graph.initializer.append(narrow)
            changed.graph.node.insert(position, cast)
        return changed


def _rounded(array: np.ndarray, name: str) -> "onnx.TensorProto":
    import ml_dtypes
    from onnx import numpy_helper

    return numpy_helper.from_array(array.astype(ml_dtypes.bfloat16), name)
