"""The same graph with fewer nodes."""

from typing import TYPE_CHECKING, ClassVar

from pareflow.model.rewriting import check_same, rewritten
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx


class Simplification(Technique):
    """Fold constants and shapes, drop what nothing reads, and merge what repeats, before any backend sees it.

    For graphs that an exporter left untidy, and for backends that optimize little themselves; ONNX Runtime
    and OpenVINO do the same at load. The result is held to the graph it came from. Source: OnnxSlim 0.1.98.
    """

    name: ClassVar[str] = "simplification"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxslim", "onnx")

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        import onnxslim

        slim = rewritten(network, onnxslim.slim, "OnnxSlim must be able to simplify the graph")
        check_same(network, slim, workload, self.name)
        return slim
