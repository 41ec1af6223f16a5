"""Integers of eight bits, in training as they will be in the runtime."""

import copy
import inspect
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pareflow import large_graphs
from pareflow.errors import UnsuitableError
from pareflow.model.distillation.response import ResponseTechnique, check_class_axis
from pareflow.model.quantization.int32_bias import biases_as_int32
from pareflow.model.training import Batch, fit
from pareflow.network import FILES, Form, check_export, with_batch
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

OPSET = 20
TOLERANCE = 0.05
"""Of the largest output, between the trained network and its graph: a number that lies between two steps may
be rounded the other way."""


class QatInt8(ResponseTechnique):
    """Train with every activation and weight rounded to eight bits, then store them so, with Q/DQ nodes.

    ONNX Runtime runs the convolutions and linear layers by the same integer kernels as static_int8's.
    It learns from the float network's answers more than from labels, which would let it drift from what was
    judged: from its logits, or, where targets are floats, from its numbers by their squared error.
    Source: Jacob et al., 2018, arXiv:1712.05877, section 3; torchao's PT2E; Mishra and Marr, 2018,
    arXiv:1711.05852, section 3 (the teacher). Departure: batch norms are folded into the convolutions before
    training, not while it simulates (1712.05877, section 3.2), and dropout is off.
    """

    name: ClassVar[str] = "qat_int8"
    form: ClassVar[Form] = "torch"
    gives: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = (
        "torch",
        "torchao",
        "accelerate",
        "onnxruntime",
        "onnx",
        "onnxscript",
    )

    epochs: int = Field(default=2, ge=1, description="passes over the training split")
    learning_rate: float = Field(default=1e-4, gt=0, description="the highest; it rises, then falls to zero")

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "onnx.ModelProto":
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        self.check_labels(workload)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torchao and the exporter say about themselves
            prepared = _prepared(network, workload)
            _calibrate(prepared, workload, self.batch_size)
            fit(prepared, workload, self, loss=self._loss(network, workload), stage=self.name)
            return _exported(convert_pt2e(prepared), workload)

    def _loss(
        self, network: "nn.Module", workload: LoadedWorkload
    ) -> "Callable[[nn.Module, Batch], torch.Tensor]":
        """Of labels and the float network's answers, mixed."""
        from pareflow.model.distillation.teacher import Teacher

        teacher = Teacher(network, workload)

        def loss(student: "nn.Module", batch: Batch) -> "torch.Tensor":
            return self.response_loss(student(*batch.inputs.values()), teacher(batch)[0], batch, workload)

        return loss


def _prepared(network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
    """The network as a graph with fake quantizers. Raises: UnsuitableError."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    from pareflow.model.quantization.int8_placement import CONVOLUTIONS, LINEAR, Int8Placement

    varying = [dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in _axes(workload).values()]
    ours = copy.deepcopy(network).eval()
    try:
        traced = torch.export.export(
            ours, _example(workload), dynamic_shapes=_by_argument(ours, varying), strict=False
        ).module()
    except Exception as error:
        raise UnsuitableError(
            "`torch.export` must be able to trace the network with a varying batch",
            f"it raised {type(error).__name__}: {str(error).strip().splitlines()[0]}",
            "Use static_int8, which needs no trace",
        ) from error
    if not any(node.target in (*CONVOLUTIONS, LINEAR) for node in traced.graph.nodes):
        raise UnsuitableError(
            "the network must hold a convolution or a linear layer",
            f"`{type(network).__name__}` holds none",
            "Drop the candidate: there is nothing to quantize",
        )
    _check_answers(traced(*_example(workload)), workload)
    prepared: nn.Module = prepare_pt2e(traced, Int8Placement())
    for switch in ("train", "eval"):
        delattr(prepared, switch)  # torchao's raise; the graph is that of evaluation in both modes
    return prepared


def _check_answers(outputs: Any, workload: LoadedWorkload) -> None:
    """Raises: UnsuitableError where there is nothing to learn from in them."""
    import torch

    if not isinstance(outputs, torch.Tensor):
        raise UnsuitableError(
            "the network must give one tensor: logits of two classes at least, or numbers where targets are",
            f"for three samples it gives {len(outputs)} outputs",
            "Use static_int8, which does not train",
        )
    check_class_axis(tuple(outputs.shape), workload)


def _calibrate(prepared: "nn.Module", workload: LoadedWorkload, batch_size: int) -> None:
    """Let the quantizers find their first ranges, so that training does not start from one batch's."""
    import torch

    prepared.eval()
    with torch.no_grad():
        for feeds in workload.feeds("calibration", batch_size):
            prepared(*map(torch.from_numpy, feeds.values()))


def _exported(converted: "nn.Module", workload: LoadedWorkload) -> "onnx.ModelProto":
    """The graph with true Q/DQ nodes. Raises: ExportError where it does not agree with its source."""
    import torch

    program = torch.onnx.export(
        converted,
        _example(workload),
        dynamo=True,
        dynamic_shapes=_by_argument(converted, [*_axes(workload).values()]),
        input_names=list(_axes(workload)),
        output_names=["output"],  # as `run_torch` calls one tensor
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None  # it is None only where a file is asked for
    model = _bare(program.model_proto)
    biases_as_int32(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILES["onnx"]
        large_graphs.save(model, path)
        check_export(converted, path, workload, TOLERANCE)
    return model


def _bare(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Without the exporter's notes, which hold paths of this machine."""
    graph = model.graph
    parts = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for noted in (model, graph, *parts):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    return model


def _axes(workload: LoadedWorkload) -> dict[str, dict[int, str]]:
    """Per input, the names of the axes that vary."""
    given = workload.definition.dynamic_axes()
    return {name: with_batch(given.get(name, {})) for name in workload.example(1)}


def _by_argument(module: "nn.Module", shapes: "list[dict[int, Any]]") -> tuple[Any, ...]:
    """The shapes as `forward` groups its inputs: those that `*inputs` takes are one argument."""
    return tuple(inspect.signature(module.forward).bind(*shapes).arguments.values())


def _example(workload: LoadedWorkload) -> "tuple[torch.Tensor, ...]":
    import torch

    return tuple(map(torch.from_numpy, workload.example(3).values()))
