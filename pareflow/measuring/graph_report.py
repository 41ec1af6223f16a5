"""What optimizing a graph did to it."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pareflow import network
from pareflow.compiler.onnxruntime import OnnxRuntime

CONSTANT = "Constant"


@dataclass(frozen=True)
class GraphReport:
    """Nodes by operator, those of subgraphs among them, before and after. Constants are not counted."""

    before: Counter[str]
    after: Counter[str]

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
        }


def graph_report(folder: Path, backend: OnnxRuntime) -> GraphReport:
    """What ONNX Runtime makes of the ONNX graph in `folder`, with the settings of `backend`."""
    with tempfile.TemporaryDirectory(prefix="pareflow-") as made:
        backend.model_copy(update={"saved": True, "packed": False}).compile(folder, Path(made))
        return GraphReport(_nodes(folder / network.FILES["onnx"]), _nodes(Path(made) / network.FILES["onnx"]))


def _nodes(path: Path) -> Counter[str]:
    import onnx

    found: Counter[str] = Counter()
    open_ends = [onnx.load_model(path, load_external_data=False).graph]
    while open_ends:
        for node in open_ends.pop().node:
            found[node.op_type] += node.op_type != CONSTANT
            open_ends += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return +found
