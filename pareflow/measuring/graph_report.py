"""What optimizing a graph did to it."""

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pareflow import network
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.measuring.network_facts import Activations, activations, called
from pareflow.workload import Arrays

if TYPE_CHECKING:
    import onnx

CONSTANT = "Constant"


@dataclass(frozen=True)
class GraphReport:
    """Nodes by operator, those of subgraphs among them, before and after. Constants are not counted.

    `activations` are what both graphs' take for one request: what fusion and memory planning save.
    """

    before: Counter[str]
    after: Counter[str]
    activations: tuple[Activations, Activations]

    @property
    def fused(self) -> Counter[str]:
        """Operators that only the optimized graph has: what other nodes were fused into, or laid out for."""
        return Counter({name: count for name, count in self.after.items() if name not in self.before})

    @property
    def gone(self) -> Counter[str]:
        """Operators with fewer nodes than before, by how many."""
        return self.before - self.after

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": {"before": self.before.total(), "after": self.after.total()},
            "before": dict(self.before.most_common()),
            "after": dict(self.after.most_common()),
            "fused": dict(self.fused.most_common()),
            "gone": dict(self.gone.most_common()),
            "activation_bytes": {
                when: asdict(found) for when, found in zip(("before", "after"), self.activations, strict=True)
            },
        }


def graph_report(folder: Path, backend: OnnxRuntime, feeds: Arrays) -> GraphReport:
    """What ONNX Runtime makes of the ONNX graph in `folder`, with the settings of `backend`.

    `feeds` is the request whose activations are counted.
    """
    with tempfile.TemporaryDirectory(prefix="pareflow-") as made:
        backend.model_copy(update={"saved": True, "packed": False}).compile(folder, Path(made))
        before, after = (network.load("onnx", place) for place in (folder, Path(made)))
        return GraphReport(
            _nodes(before), _nodes(after), (activations(before, feeds), activations(after, feeds))
        )


def _nodes(model: "onnx.ModelProto") -> Counter[str]:
    found: Counter[str] = Counter()
    open_ends = [model.graph]
    while open_ends:
        for node in open_ends.pop().node:
            found[called(node)] += node.op_type != CONSTANT
            open_ends += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return +found
