"""Cut an ONNX graph in two: a head that runs on the device, and a tail that runs on a server.

Source: Kang et al., 2017, Neurosurgeon (ASPLOS), section 4, which cuts chains of layers; here any graph is
cut after each operator whose answer, with few others, separates the inputs from the outputs.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pareflow.errors import UnsuitableError
from pareflow.workload import Arrays

if TYPE_CHECKING:
    import onnx

MOST_TENSORS = 4
"""So many tensors may cross at most."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A way to cut: positions of the nodes of either half, and the tensors that cross, by name.

    What crosses may also be an input of the graph. A node that is cheap to repeat may be in both halves.
    """

    layer: str
    head: frozenset[int]
    tail: frozenset[int]
    crossing: tuple[str, ...]


class Dataflow:
    """Which node reads and makes which tensor; constants are free, and belong to whoever needs them."""

    def __init__(self, graph: "onnx.GraphProto") -> None:
        self.nodes = list(graph.node)
        self.inputs = _inputs(graph)
        self.outputs = [value.name for value in graph.output]
        constant = {tensor.name for tensor in graph.initializer}
        constant |= {tensor.values.name for tensor in graph.sparse_initializer} | {""}
        self.reads: list[frozenset[str]] = []
        self.maker: dict[str, int] = {}
        self.made_from_constants: dict[str, int] = {}
        for position, node in enumerate(self.nodes):
            reads = frozenset(_read_by(node) - constant)
            self.reads.append(reads)
            if not reads:
                constant |= set(node.output)
                self.made_from_constants |= dict.fromkeys(node.output, position)
            self.maker |= dict.fromkeys(filter(None, node.output), position)

    def needed(self, tensors: Iterable[str]) -> frozenset[int]:
        """The nodes that these tensors are computed by, without those of constants."""
        found: set[int] = set()
        due = [self.maker[tensor] for tensor in tensors if tensor in self.maker]
        while due:
            position = due.pop()
            if position not in found and self.reads[position]:
                found.add(position)
                due += [self.maker[name] for name in self.reads[position] if name in self.maker]
        return frozenset(found)

    def crossing(self, tail: frozenset[int]) -> list[str]:
        """What the tail reads and does not make, in the order in which it is made; the inputs come first."""
        made = {name for position in tail for name in self.nodes[position].output}
        read = set().union(*(self.reads[position] for position in tail)) - made
        return sorted(read, key=lambda name: (self.maker.get(name, -1), name))

    def named(self, position: int) -> str:
        node = self.nodes[position]
        return f"{node.op_type} {node.name or node.output[0]}"


def tensors_of(model: "onnx.ModelProto", batches: Sequence[Arrays]) -> list[Arrays]:
    """For each batch every tensor that the graph computes from its inputs, and the inputs themselves."""
    import onnx
    import onnxruntime

    flow = Dataflow(model.graph)
    watched = copy.deepcopy(model)
    present = {value.name for value in watched.graph.output}
    wanted = [
        name
        for position, node in enumerate(flow.nodes)
        for name in node.output
        if name and flow.reads[position]
    ]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = []
    for feeds in batches:
        given = {name: feeds[name] for name in flow.inputs}
        found.append({**given, **dict(zip(wanted, session.run(wanted, given), strict=True))})
    return found


def portable(seen: Sequence[Arrays], name: str) -> bool:
    """Whether a tensor may cross: numbers, all finite, with a row per sample in every batch that was seen."""
    for tensors in seen:
        array, samples = tensors[name], len(next(iter(tensors.values())))
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            return False
        if array.shape[:1] != (samples,) or not np.isfinite(array).all():
            return False
    return True


def cuts(model: "onnx.ModelProto", seen: Sequence[Arrays], most_tensors: int = MOST_TENSORS) -> list[Cut]:
    """Every valid cut, the least on the device first. `seen` is what `tensors_of` gives, of two batch sizes.

    A cut after a node has on the device all that the node depends on, and no more. What would cross but has
    no row per sample (a shape, a position) is computed again by the tail, from the inputs if need be.
    """
    flow = Dataflow(model.graph)
    whole = flow.needed(flow.outputs)
    found: dict[tuple[str, ...], Cut] = {}
    for position in sorted(whole):
        head = flow.needed(flow.nodes[position].output)
        tail = _closed(flow, whole - head, seen)
        crossing = flow.crossing(tail)
        head = flow.needed(name for name in crossing if name in flow.maker)
        computed = any(flow.maker[name] in head for name in flow.outputs if name in flow.maker)
        if tail and head and tail != whole and not computed and len(crossing) <= most_tensors:
            last = flow.named(max(head))
            found.setdefault(tuple(crossing), Cut(last, head, tail, tuple(crossing)))
    return sorted(found.values(), key=lambda cut: (len(cut.head), cut.crossing))


def _closed(flow: Dataflow, tail: frozenset[int], seen: Sequence[Arrays]) -> frozenset[int]:
    """The tail with what it must compute itself, since it cannot cross."""
    while True:
        stuck = [name for name in flow.crossing(tail) if name in flow.maker and not portable(seen, name)]
        if not stuck:
            return tail
        tail |= {flow.maker[name] for name in stuck}


def split(model: "onnx.ModelProto", cut: Cut) -> tuple["onnx.ModelProto", "onnx.ModelProto"]:
    """The head, which gives what crosses, and the tail, which takes it; the given model is untouched.

    An input of the graph that crosses is not an output of the head: whoever has it passes it on.
    """
    import onnx

    graph = model.graph
    flow = Dataflow(graph)
    known = {value.name: value for value in [*graph.input, *graph.output]}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    known |= {value.name: value for value in inferred if value.name in cut.crossing}
    unknown = [name for name in cut.crossing if name not in known]
    if unknown:
        raise UnsuitableError(
            "what crosses a cut must have a type that is known",
            f"that of `{unknown[0]}` cannot be inferred",
            "Give the graph `value_info`, or cut elsewhere",
        )
    read = set().union(*(flow.reads[position] for position in cut.head))
    head = _part(
        model,
        cut.head,
        [known[name] for name in flow.inputs if name in read],
        [known[name] for name in cut.crossing if name in flow.maker],
    )
    return head, _part(model, cut.tail, [known[name] for name in cut.crossing], list(graph.output))


def _part(
    model: "onnx.ModelProto",
    positions: frozenset[int],
    inputs: Sequence["onnx.ValueInfoProto"],
    outputs: Sequence["onnx.ValueInfoProto"],
) -> "onnx.ModelProto":
    """These nodes and the constants they read, as a model of their own."""
    flow, graph = Dataflow(model.graph), model.graph
    kept, due = set(positions), list(positions)
    while due:  # the nodes that make constants are not in `reads`
        for name in _read_by(flow.nodes[due.pop()]):
            maker = flow.made_from_constants.get(name)
            if maker is not None and maker not in kept:
                kept.add(maker)
                due.append(maker)
    read = set().union(*(_read_by(flow.nodes[position]) for position in kept))
    part = copy.deepcopy(model)
    part.ir_version = max(model.ir_version, 4)  # before, weights had to be inputs too
    part.graph.ClearField("node")
    part.graph.ClearField("value_info")
    part.graph.node.extend(flow.nodes[position] for position in sorted(kept))
    for field in ("input", "output", "initializer", "sparse_initializer", "quantization_annotation"):
        part.graph.ClearField(field)
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    part.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in read)
    return part


def _inputs(graph: "onnx.GraphProto") -> list[str]:
    """What callers give: old graphs list their weights as inputs, too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in weights]


def _read_by(node: "onnx.NodeProto") -> set[str]:
    """The tensors that a node reads, those that its subgraphs take from around them included."""
    read = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            inside = set().union(*(_read_by(inner) for inner in graph.node), (v.name for v in graph.output))
            read |= inside - own
    return read - {""}


def worth_measuring(sizes: Mapping[Cut, float], input_bytes: float, most: int) -> list[Cut]:
    """At most so many of the cuts, in their order: where all fit, all.

    Else those that send less than every cut before them and than the inputs take (no other can be best where
    the server is as fast as the device, or faster), thinned evenly, or filled up evenly with the others:
    those first by which the fewest tensors cross, as between the blocks of a network.
    """
    ordered = list(sizes)
    if len(ordered) <= most:
        return ordered
    least, front = input_bytes, []
    for cut in ordered:
        if sizes[cut] < least:
            least = sizes[cut]
            front.append(cut)
    chosen = _evenly(front, most)
    for count in sorted({len(cut.crossing) for cut in ordered}):
        others = [cut for cut in ordered if cut not in front and len(cut.crossing) == count]
        chosen += _evenly(others, most - len(chosen))
    return [cut for cut in ordered if cut in chosen]


def _evenly(cuts: list[Cut], count: int) -> list[Cut]:
    if len(cuts) <= count:
        return cuts
    return [cuts[round(position)] for position in np.linspace(0, len(cuts) - 1, count)]
