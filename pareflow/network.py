"""The forms a network takes (torch module, exported program, ONNX graph, OpenVINO model): saved, loaded,
converted.

Techniques change a network within one form; backends run one form. The ways go one direction only, torch →
onnx → openvino, and torch or onnx → exported, so a recipe's techniques come in that order.
"""

import functools
import logging
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pareflow import comparison, exported, graph_file, large_graphs
from pareflow.catalog import installed_version
from pareflow.errors import BadOutputError, ExportError, WorkloadError
from pareflow.ports import Port, Ports
from pareflow.variant import digest
from pareflow.workload import Arrays, LoadedWorkload

Form = Literal["torch", "exported", "onnx", "openvino"]
FORMS: tuple[Form, ...] = ("torch", "onnx", "exported", "openvino")
"""A later form is never made into an earlier one, nor `exported` into any other."""
FILES: dict[Form, str] = {
    "torch": "network.pt",
    "exported": "network.pt2",
    "onnx": "model.onnx",
    "openvino": "model.xml",
}
WAYS = "torch → onnx → openvino, and torch or onnx → exported"
OPSET = 17
"""The legacy exporter's newest, and the graph that ONNX Runtime fuses best (measured, docs/log.md)."""
HALF_TOLERANCE = 1e-2
"""Of an export, in place of `comparison.TOLERANCE`, where weights have a half precision."""


def form_of(folder: Path) -> Form:
    """The form of the network that lies in `folder`."""
    return next(form for form in reversed(FORMS) if (folder / FILES[form]).exists())


def save(network: Any, form: Form, folder: Path) -> None:
    """Write a network into `folder`, in its form's file."""
    path = folder / FILES[form]
    if form == "torch":
        import torch

        torch.save(network, path)
    elif form == "exported":
        exported.save(network, path)
    elif form == "onnx":
        large_graphs.save(network, path)
    else:
        import openvino

        openvino.save_model(_numbered_by_position(network), path, compress_to_fp16=False)


def _numbered_by_position(model: Any) -> Any:
    """A copy of an OpenVINO model without numbers from the process's counter: same network, same bytes."""
    copy = model.clone()
    for position, node in enumerate(copy.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{position}")
    return copy


def load(form: Form, folder: Path) -> Any:
    """Read a network from `folder`. A torch module needs its workload loaded first: it holds the classes.

    Raises: WorkloadError where a torch module's classes are nowhere to be imported.
    """
    path = folder / FILES[form]
    if form == "torch":
        return _unpickled(path)
    if form == "exported":
        import torch

        return torch.export.load(path)
    if form == "onnx":
        import onnx

        return onnx.load_model(path)
    return openvino_core().read_model(path)


_ONE_CORE = threading.Lock()


def openvino_core() -> Any:
    """This process's only `openvino.Core`, which stays: freed by another thread than made it, it takes along
    the signal stack that it gave that thread, and the next signal there ends the process."""
    with _ONE_CORE:
        return _core()


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _unpickled(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=False).eval()
    except (ImportError, AttributeError) as error:
        raise WorkloadError(
            "each process must find the network's classes once it has imported the workload",
            f"opening it raised {type(error).__name__}: {error}",
            "Import them, and change `sys.path` for it, at the top of the workload's file: what `network()` "
            "alone imports or fetches is not there in other processes",
        ) from error


def convert(folder: Path, form: Form, workload: LoadedWorkload, into: Path) -> None:
    """Write the network of `folder` into `into`, in the later `form`."""
    source = form_of(folder)
    if FORMS.index(source) > FORMS.index(form) or source == "exported":
        raise ExportError(
            f"a network must have the form {form} for this",
            f"it is in the form {source}, and forms follow {WAYS}",
            "Take techniques and backends of a later form, or give the workload a torch network",
        )
    if form == "exported":
        module = load("torch", folder) if source == "torch" else _graph_module(folder, workload)
        program = exported.export(module, workload, name_outputs)
        tolerance = _tolerance_of_module(module) if source == "torch" else tolerance_of(folder)
        check(runner(folder), exported.runner(program), workload, "program", tolerance)
        exported.write(program, workload, into / FILES["exported"])
        return
    if source == "torch":
        module = load("torch", folder)
        export(module, workload, into / FILES["onnx"])
        check_export(module, into / FILES["onnx"], workload, _tolerance_of_module(module))
        source, folder = "onnx", into
    if source == "onnx" and form == "openvino":
        save(_openvino_model(folder / FILES["onnx"]), "openvino", into)
        source_run = graph_runner(folder / FILES["onnx"])
        check(source_run, runner(into), workload, "OpenVINO model", tolerance_of(folder))


def _graph_module(folder: Path, workload: LoadedWorkload) -> Any:
    """The ONNX graph of `folder` as a torch module. Raises: ExportError."""
    from pareflow.graph_module import GraphModule

    return GraphModule(load("onnx", folder), list(workload.example(1)))


def _openvino_model(graph: Path) -> Any:
    """OpenVINO's form of an ONNX graph. Raises: ExportError, which names the operators that it lacks."""
    import onnx
    import openvino

    logged = logging.root.level, logging.root.filters[:]
    try:
        return openvino.convert_model(graph)
    except Exception as error:
        told = re.findall(r"(?:for operations|failed for): (.*)", str(error))
        lacking = set(re.findall(r"[\w.]+", " ".join(told)))
        model = onnx.load_model(graph, load_external_data=False)
        at = [graph_file.called(n) for n in graph_file.nodes(model.graph) if _names(n) & lacking]
        raise ExportError(
            "OpenVINO must have every operator of the graph",
            f"it lacks {', '.join(at)}" if at else f"it says: {comparison.first_line(error)}",
            "Take onnxruntime, which has the most operators, or export with an older opset",
        ) from error
    finally:  # a conversion that fails leaves the root logger deaf to warnings, with a filter of its own
        logging.root.setLevel(logged[0])
        logging.root.filters = logged[1]


def _names(node: Any) -> set[str]:
    """A node's operator as OpenVINO may write it."""
    return {node.op_type, f"{node.domain}.{node.op_type}"}


def tolerance_of(folder: Path) -> float:
    """How near another runtime must come to the ONNX graph of `folder`: a step of its narrowest numbers."""
    import onnx

    graph = onnx.load_model(folder / FILES["onnx"], load_external_data=False).graph
    if graph_file.quantized(graph) is not None:
        return 0.1
    kinds = {weight.data_type for weight in graph.initializer}
    narrow = kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return HALF_TOLERANCE if narrow else comparison.TOLERANCE


def _tolerance_of_module(network: Any) -> float:
    """The same of what a torch module is exported to."""
    import torch

    kinds = {weight.dtype for weight in network.parameters()}
    return HALF_TOLERANCE if kinds & {torch.float16, torch.bfloat16} else comparison.TOLERANCE


def check_export(
    network: Any, path: Path, workload: LoadedWorkload, tolerance: float = comparison.TOLERANCE
) -> None:
    """Hold the ONNX file `path` to the torch module that it was exported from. Raises: ExportError."""
    check(lambda feeds: run_torch(network, feeds), graph_runner(path), workload, "graph", tolerance)


def check(
    source: Callable[[Arrays], Arrays],
    made: Callable[[Arrays], Arrays],
    workload: LoadedWorkload,
    what: str,
    tolerance: float = comparison.TOLERANCE,
) -> None:
    """Hold an export to its source, on real inputs of several shapes.

    Raises: ExportError, which names the output, the numbers and the shape.
    """
    found = comparison.mismatch(source, made, comparison.real_inputs(workload), tolerance)
    if found:
        raise ExportError(
            f"the exported {what} must agree with its source within {tolerance:g}",
            found,
            "Look for sizes that the exporter fixed, and for control flow that depends on data or batch size",
        )


def export(network: Any, workload: LoadedWorkload, path: Path) -> None:
    """Write a torch module as an ONNX graph: as its workload does, or as any other. Raises: ExportError."""
    getattr(workload.definition, "export", export_onnx)(network, workload, path)
    _gather(path)


def _gather(path: Path) -> None:
    """Weights beside a graph in one file of its name: over 2 GiB torch writes a file for each."""
    import onnx

    beside = graph_file.external_files(path)
    if beside:
        model = onnx.load_model(path)
        for file in beside:
            file.unlink()
        large_graphs.save_beside(model, path)


def export_onnx(network: Any, workload: LoadedWorkload, path: Path) -> None:
    """Export a torch module with a dynamic batch, its outputs called as `run_torch` calls them.

    Raises: ExportError, with the exporter's own words; WorkloadError.
    """
    import torch

    from pareflow.torch_network import as_tensor

    feeds = workload.example(batch_size=2)
    outputs = _output_names(network.eval(), feeds)
    axes = _varying_axes(workload, [*feeds, *outputs])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter's deprecation and tracing notes; the check below decides
        try:
            torch.onnx.export(
                network,
                tuple(map(as_tensor, feeds.values())),
                str(path),
                input_names=list(feeds),
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:
            raise ExportError(
                "the original must become an ONNX graph",
                f"torch.onnx.export raised {type(error).__name__}: {str(error).strip().splitlines()[0]}",
                "Rewrite the operation it names, or give the workload an `export` method",
            ) from error


def _output_names(network: Any, feeds: Arrays) -> list[str]:
    """What torch calls the outputs. Raises: ExportError where `forward` raises."""
    try:
        return list(run_torch(network, feeds))
    except Exception as error:
        raise ExportError(
            "the original must become an ONNX graph",
            f"its `forward` raised {type(error).__name__}: {comparison.first_line(error)}",
            "Mend it: it takes what `preprocess()` gives, in that order, and gives tensors",
        ) from error


def _varying_axes(workload: LoadedWorkload, names: list[str]) -> dict[str, dict[int, str]]:
    """Per input and output, the axes that vary. Raises: WorkloadError for an axis of none of them."""
    given = workload.definition.dynamic_axes()
    stray = [name for name in given if name not in names]
    if stray:
        raise WorkloadError(
            "`dynamic_axes()` must name inputs and outputs of the network",
            f"it names `{'`, `'.join(stray)}`, and there are `{'`, `'.join(names)}`",
            "Name those, or let `forward` give a dictionary, whose keys are the names",
        )
    return {name: with_batch(given.get(name, {})) for name in names}


def with_batch(axes: Mapping[int, str]) -> dict[int, str]:
    """The axes of an input or output that vary: those that `dynamic_axes` says, and its first."""
    return {0: "batch", **axes}


def form_of_network(network: Any) -> Form:
    """The form of what a workload's `network()` gives."""
    import onnx

    return "onnx" if isinstance(network, onnx.ModelProto) else "torch"


def runner(folder: Path) -> Callable[[Arrays], Arrays]:
    """The network of `folder` as a function of named arrays, as it is: variants are compared with it."""
    form = form_of(folder)
    if form == "torch":
        module = load("torch", folder)
        return lambda feeds: run_torch(module, feeds)
    if form == "exported":
        return exported.runner(load("exported", folder))
    return graph_runner(folder / FILES["onnx"]) if form == "onnx" else _runner_openvino(folder)


def graph_runner(path: Path) -> Callable[[Arrays], Arrays]:
    """An ONNX file as a function of named arrays, in ONNX Runtime. Raises: ExportError."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            "ONNX Runtime must be able to load the graph",
            f"it says: {graph_file.said_by_runtime(error)}",
            "Export it with other operators, or another opset",
        ) from error
    names = [node.name for node in session.get_outputs()]
    return onnxruntime_ports(session).fitted(
        lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))
    )


def _runner_openvino(folder: Path) -> Callable[[Arrays], Arrays]:
    """The OpenVINO model of `folder` as a function of named arrays, in 32 bits."""
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino_core().compile_model(folder / FILES["openvino"], "CPU", hints).create_infer_request()
    ports = openvino_ports(request.get_compiled_model().inputs)
    return ports.fitted(
        lambda feeds: {port.get_any_name(): np.array(array) for port, array in request.infer(feeds).items()}
    )


def onnxruntime_ports(session: Any) -> Ports:
    """What an `InferenceSession` takes."""

    def port(given: Any) -> Port:
        kind = given.type.removeprefix("tensor(").removesuffix(")")
        sizes = tuple(size if isinstance(size, int) and size > 0 else None for size in given.shape)
        return Port(given.name, _KINDS.get(kind, kind), sizes)

    return Ports(tuple(map(port, session.get_inputs())))


_KINDS = {"float": "float32", "double": "float64", "string": ""}
"""ONNX Runtime's names of element types, where numpy has others."""


def openvino_ports(inputs: Any) -> Ports:
    """What a compiled OpenVINO model takes."""

    def port(given: Any) -> Port:
        shape = given.partial_shape
        sizes = (
            None if shape.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in shape)
        )
        return Port(given.get_any_name(), given.element_type.to_dtype().name, sizes)

    return Ports(tuple(map(port, inputs)))


def run_torch(network: Any, feeds: Arrays) -> Arrays:
    """One forward pass of a torch module over named arrays; outputs are named `output`, `output_1`, …"""
    import torch

    from pareflow.torch_network import as_array, as_tensor

    device = next(network.parameters(), torch.empty(0)).device
    with torch.inference_mode():
        given = network(*(as_tensor(array, device) for array in feeds.values()))
    return name_outputs(given, as_array)


def name_outputs(given: Any, to_numpy: Callable[[Any], np.ndarray]) -> Arrays:
    """A network's outputs (one, a tuple, or a mapping such as transformers gives) as named arrays."""
    if isinstance(given, dict):
        return {name: to_numpy(value) for name, value in given.items()}
    values = given if isinstance(given, (tuple, list)) else (given,)
    return {f"output_{i}" if i else "output": to_numpy(value) for i, value in enumerate(values)}


def check_outputs(outputs: Arrays, samples: int) -> None:
    """Raises: BadOutputError where an output has NaN or infinity, or not one row per sample.

    Minus infinity may stand for logits that are masked, as long as a sample has others.
    """
    for name, array in outputs.items():
        bad = _not_numbers(array)
        if bad:
            raise BadOutputError(
                "every output must be finite, or minus infinity beside finite ones",
                f"`{name}` has {bad} NaN or infinite values",
                "Drop the candidate",
            )
        if array.shape[:1] != (samples,):
            raise BadOutputError(
                "every output must have one row per sample",
                f"`{name}` has shape {array.shape} for {samples} samples",
                "Mend the network, or its export",
            )


def _not_numbers(array: np.ndarray) -> int:
    """How many values are NaN or infinite, and mask nothing; none of texts and whole numbers."""
    if array.dtype.kind not in "fc":
        return 0
    finite = np.isfinite(array)
    others = finite.any(axis=tuple(range(1, array.ndim)), keepdims=True)
    return int((~finite & ~((array == -np.inf) & others)).sum())


EXPORTERS: dict[Form, tuple[str, ...]] = {
    "torch": (),
    "onnx": ("torch", "onnx", "optimum-onnx"),
    "exported": ("torch", "onnx"),
    "openvino": ("torch", "onnx", "optimum-onnx", "openvino"),
}
"""What takes part in converting a network to a form."""


@functools.cache
def code_version(form: Form) -> str:
    """Part of the name of every network that is converted to `form`: a digest of this file, of those that it
    converts by, and of the exporters' versions.

    Of those to this form alone: to install OpenVINO makes no ONNX graph anew. Of torch not the build (`+cpu`,
    `+cu130`): nodes with a GPU and without make the same.
    """
    root = Path(__file__).parent
    beside = [
        root / "graph_module.py",
        root / "large_graphs.py",
        root / "torch_network.py",
        *sorted((root / "graph_operators").glob("*.py")),
    ]
    modules = (Path(__file__), Path(exported.__file__), Path(comparison.__file__), *beside)
    sources = [file.read_text() for file in modules]
    versions = {name: (installed_version(name) or "").partition("+")[0] for name in EXPORTERS[form]}
    return digest(sources, versions)
