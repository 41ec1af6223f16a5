"""An ONNX graph as a torch module, which torch.export takes: the way from the form `onnx` to `exported`.

What depends on constants alone is computed once, when the module is made. Three libraries were tried first,
see docs/log.md, 2026-11-28.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from pareflow import graph_file
from pareflow.comparison import first_line
from pareflow.errors import ExportError
from pareflow.graph_operators import OF_SIZES, OPERATORS, as_tensor, torch_kind

SMALL = 2**10
"""Integers of at most so many values may be sizes."""
_REMEDY = "Take a backend of the form onnx or openvino, or export the network without this operator"

Value = torch.Tensor | np.ndarray
"""A tensor; or numbers that are known, or sizes of an open batch."""


class GraphModule(torch.nn.Module):
    """Takes the graph's inputs in the order of `takes`; gives its outputs as a mapping.

    Raises: ExportError, when it is made or called, which names the operator that lacks, and its node.
    """

    def __init__(self, model: onnx.ModelProto, takes: Sequence[str]) -> None:
        super().__init__()
        graph = graph_file.raised(model).graph
        self._takes, self._gives = tuple(takes), [value.name for value in graph.output]
        self._kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self._known: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._weights: dict[str, str] = {}
        self._nodes = [node for node in graph.node if not self._folded(node)]
        for name in dict.fromkeys(name for node in self._nodes for name in node.input):
            if name in self._known:
                self._enter(name)

    def _folded(self, node: onnx.NodeProto) -> bool:
        """Whether a node depends on constants alone; its outputs are then known."""
        check(node)
        if node.op_type == "Constant":
            self._known[node.output[0]] = _constant(node)
            return True
        if any(name and name not in self._known for name in node.input):
            return False
        for name, value in self._outputs(node, self._known).items():
            self._known[name] = value.numpy() if isinstance(value, torch.Tensor) else value
        return True

    def _enter(self, name: str) -> None:
        """Keep a constant as a parameter, or, where it has no gradient, as a buffer."""
        tensor = as_tensor(self._known[name])
        own = f"weight_{len(self._weights)}"
        if tensor.is_floating_point():
            self.register_parameter(own, torch.nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(own, tensor)
        self._weights[name] = own

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        values: dict[str, Value] = dict(self._known)
        for name, given in zip(self._takes, inputs, strict=True):
            kind = torch_kind(self._kinds[name])
            values[name] = given if given.dtype == kind else given.to(kind)
        for node in self._nodes:
            values |= self._outputs(node, values)
        return {name: self._as_tensor(name, values[name]) for name in self._gives}

    def _outputs(self, node: onnx.NodeProto, values: Mapping[str, Value]) -> dict[str, Value]:
        """What a node gives, by name. Raises: ExportError."""
        given = [values[name] if name else None for name in node.input]
        try:
            found = self._run(node, given)
        except Exception as error:
            raise ExportError(
                "every operator of the graph must become one of torch",
                f"{graph_file.called(node)} does not: {type(error).__name__}: {first_line(error)}",
                _REMEDY,
            ) from error
        several = found if isinstance(found, tuple) else (found,)
        return {name: value for name, value in zip(node.output, several, strict=False) if name}

    def _run(self, node: onnx.NodeProto, given: Sequence[Value | None]) -> Any:
        attributes = _attributes(node)
        if node.op_type in OF_SIZES and all(value is None or _sizes(value) for value in given):
            sizes = [None if value is None else value.astype(object) for value in given]  # type: ignore[union-attr]
            if any(value is not None and value.dtype == object for value in given):
                return OF_SIZES[node.op_type](*sizes, **attributes)
        operator = OPERATORS[node.op_type]
        taken: list[Any] = []
        for position, (name, value) in enumerate(zip(node.input, given, strict=True)):
            if value is None:
                taken.append(None)
            elif position in operator.known:
                taken.append(_must_be_known(name, value))
            else:
                taken.append(self._as_tensor(name, value))
        return operator.run(*taken, **attributes)

    def _as_tensor(self, name: str, value: Value) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return value
        own = self._weights.get(name)
        return getattr(self, own) if own else as_tensor(value)


def check(node: onnx.NodeProto) -> None:
    """Raises: ExportError where there is nothing in torch for a node's operator."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in {*OPERATORS, "Constant"}:
        raise ExportError(
            "every operator of the graph must become one of torch",
            f"{graph_file.called(node)} does not: there is none for it in pareflow/graph_operators/",
            _REMEDY,
        )


def _constant(node: onnx.NodeProto) -> np.ndarray:
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        array: np.ndarray = numpy_helper.to_array(value)
        return array
    return np.asarray(value, np.float32 if "float" in attribute.name else np.int64)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name, texts as such."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _sizes(value: Value) -> bool:
    """Whether it may be sizes: integers that are known."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "iObO" and value.size <= SMALL


def _must_be_known(name: str, value: Value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        raise ValueError(f"`{name}` must be known before the network runs, but depends on its inputs")
    return value
