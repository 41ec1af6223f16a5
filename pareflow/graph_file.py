"""An ONNX file as users have it: read, brought into one shape, and told plainly where it cannot be used."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pareflow.errors import ExportError, WorkloadError
from pareflow.ports import Port, Ports

if TYPE_CHECKING:
    import onnx

LARGEST_BYTES = 2**31 - 1
"""Of a protobuf: its lengths are signed and have 32 bits."""
CHOOSABLE_WEIGHTS_IR = 4
"""The IR version from which on a weight need not be an input as well."""
OPSET = 13
"""The oldest that operators are written for, and that has scales per channel; older graphs are raised."""
_KINDS = {
    b"\x89HDF": ("an HDF5 file, such as Keras writes", "tf2onnx converts it: `python -m tf2onnx.convert`"),
    b"PK\x03\x04": (
        "a zip archive, such as torch.save writes",
        "`torch.onnx.export` makes a graph of a module",
    ),
    b"\x80": ("a Python pickle", "`torch.onnx.export` makes a graph of a module"),
    b"<?xm": ("an XML file, such as OpenVINO writes", "Take the ONNX file that it was made from"),
    b"\x1f\x8b": ("compressed with gzip", "Unpack it"),
    b"vers": ("a pointer of Git LFS", "Fetch it: `git lfs pull`"),
}
_SCALED_AS_IT_COMES = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
_MAKERS = {"QuantizeLinear", "DynamicQuantizeLinear"}


def read(path: Path) -> "onnx.ModelProto":
    """The graph of a file, with its weights, none of them an input any longer.

    Weights that are also inputs (IR version 3, or `keep_initializers_as_inputs`) could be changed by each
    request, so that no runtime folds them and no technique finds them.
    Raises: WorkloadError, which names the file, and what is wrong there.
    """
    import onnx

    model = _parsed(path)
    _check_external(path, model)
    onnx.load_external_data_for_model(model, str(path.parent))
    sparse = [weight.values for weight in model.graph.sparse_initializer]
    names = {weight.name for weight in (*model.graph.initializer, *sparse)}
    for port in [port for port in model.graph.input if port.name in names]:
        model.graph.input.remove(port)
    model.ir_version = max(model.ir_version, CHOOSABLE_WEIGHTS_IR)
    return model


def _parsed(path: Path) -> "onnx.ModelProto":
    """The protobuf without external data. Raises: WorkloadError."""
    import onnx

    if path.is_dir():
        raise _unusable(path, "it is a folder", _in_folder(path))
    if not path.exists():
        raise _unusable(path, "there is no such file", "Paths start from the folder of the pipeline YAML")
    size = path.stat().st_size
    if size == 0:
        raise _unusable(path, "it is empty", "Export it again, or copy it again")
    if size > LARGEST_BYTES:
        raise _unusable(
            path,
            f"it has {size / 2**30:.1f} GiB, and a protobuf holds at most 2",
            "Save its weights beside it: `onnx.save_model(…, save_as_external_data=True)`",
        )
    with path.open("rb") as file:
        head = file.read(8)
    told = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
    if head[4:] in (b"TFL3",):
        told = ("a TensorFlow Lite file", "tf2onnx converts it: `python -m tf2onnx.convert --tflite`")
    if told:
        raise _unusable(path, f"it is {told[0]}", told[1])
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError
        raise _unusable(
            path,
            f"its {size} bytes, which begin with {head!r}, are no whole protobuf",
            "It is truncated, damaged or of another kind: copy it again, or export it again",
        ) from error
    if not model.HasField("graph") or not model.opset_import or not model.graph.output:
        raise _unusable(path, f"its {size} bytes hold no graph with outputs and an opset", "Export it again")
    return model


def _in_folder(path: Path) -> str:
    """The way out for a folder: what lies in it."""
    if (path / "saved_model.pb").exists():
        return "tf2onnx converts it: `python -m tf2onnx.convert --saved-model`"
    found = sorted(file.name for file in path.glob("*.onnx"))
    return f"Name a file in it: {', '.join(found)}" if found else "Name the .onnx file itself"


def _check_external(path: Path, model: "onnx.ModelProto") -> None:
    """Raises: WorkloadError where weights that lie beside the file are missing or cut off."""
    for tensor in external(model):
        said = {entry.key: entry.value for entry in tensor.external_data}
        beside = path.parent / said.get("location", "")
        reader = _reader(model, tensor.name)
        if not beside.is_file() or not beside.resolve().is_relative_to(path.parent.resolve()):
            raise _unusable(
                path,
                f"the weight `{tensor.name}` of {reader} should lie in {said.get('location')!r} beside it, "
                "and is not there",
                f"Put {said.get('location')!r} into {path.parent}, or export again into one file",
            )
        end = int(said.get("offset", 0)) + int(said.get("length", 0))
        if beside.stat().st_size < end:
            raise _unusable(
                path,
                f"the weight `{tensor.name}` of {reader} should end at byte {end} of {beside.name}, "
                f"which has {beside.stat().st_size}",
                f"{beside.name} is truncated or of another export: copy both again",
            )


def external(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """The weights that lie outside the file."""
    import onnx

    for weight in weights(model.graph):
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            yield weight


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights. Raises: WorkloadError."""
    model = _parsed(path)
    _check_external(path, model)
    locations = {
        entry.value for tensor in external(model) for entry in tensor.external_data if entry.key == "location"
    }
    return [path.parent / location for location in sorted(locations)]


def raised(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model, of opset `OPSET` where it is of an older one. Raises: ExportError."""
    from onnx import version_converter

    opset = next((entry.version for entry in model.opset_import if not _domain(entry.domain)), OPSET)
    if opset >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:
        raise ExportError(
            f"the graph must be of opset {OPSET} or later, or be raised to it",
            f"it is of opset {opset}, and onnx says: {str(error).strip().partition(chr(10))[0]}",
            "Export it again with opset 17",
        ) from error


def ports(model: "onnx.ModelProto") -> Ports:
    """What the graph takes."""
    weights = {weight.name for weight in model.graph.initializer}
    return Ports(tuple(_port(value) for value in model.graph.input if value.name not in weights))


def outputs(model: "onnx.ModelProto") -> Ports:
    """What the graph gives."""
    return Ports(tuple(map(_port, model.graph.output)))


def _port(value: "onnx.ValueInfoProto") -> Port:
    from onnx import helper

    kind = value.type.tensor_type
    name = helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else ""
    sizes = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
    return Port(
        value.name, "" if name == "object" else name, tuple(sizes) if kind.HasField("shape") else None
    )


def nodes(graph: "onnx.GraphProto") -> "Iterator[onnx.NodeProto]":
    """Every node, those of the branches of `If` and the bodies of `Loop` and `Scan` among them."""
    for node in graph.node:
        yield node
        for inner in _inner(node):
            yield from nodes(inner)


def weights(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    """Every weight, those of subgraphs among them."""
    yield from graph.initializer
    for node in graph.node:
        for inner in _inner(node):
            yield from weights(inner)


def _inner(node: "onnx.NodeProto") -> "Iterator[onnx.GraphProto]":
    """The subgraphs of a node itself."""
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def quantized(graph: "onnx.GraphProto") -> "onnx.NodeProto | None":
    """The first node that computes with, or makes, quantized numbers, as Q/DQ pairs or as operators.

    Weights alone that are stored so and unpacked first do not count: what computes is float.
    """
    weights = {weight.name for weight in graph.initializer}
    return next((node for node in nodes(graph) if _computes_quantized(node, weights)), None)


def only_rounds(path: Path) -> bool:
    """Whether no operator of a quantized graph takes integers: they are made, and unpacked before each."""
    import onnx

    every = list(nodes(onnx.load_model(path, load_external_data=False).graph))
    made = {node.output[0] for node in every if node.op_type in _MAKERS}
    others = [node for node in every if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    return not any(_takes_integers(node) or made & {*node.input} for node in others)


def mixes_samples(path: Path) -> bool:
    """Whether a graph takes a scale of a whole tensor as it comes, so that answers depend on the batch."""
    import onnx

    graph = onnx.load_model(path, load_external_data=False).graph
    return any(node.op_type in _SCALED_AS_IT_COMES for node in nodes(graph))


def _computes_quantized(node: "onnx.NodeProto", weights: set[str]) -> bool:
    if node.op_type == "DequantizeLinear":
        return node.input[0] not in weights
    return node.op_type in _MAKERS or _takes_integers(node)


def _takes_integers(node: "onnx.NodeProto") -> bool:
    return node.op_type in ("MatMulInteger", "ConvInteger") or node.op_type.startswith("QLinear")


def called(node: "onnx.NodeProto") -> str:
    """A node in words: its operator, and its name or, where it has none, what it gives."""
    domain = f"{node.domain}:" if _domain(node.domain) else ""
    place = f"node `{node.name}`" if node.name else f"the node that gives `{next(iter(node.output), '')}`"
    return f"{domain}{node.op_type} ({place})"


def check_runnable(path: Path) -> None:
    """Open the file in ONNX Runtime. Raises: WorkloadError, which names the node and the operator."""
    import onnxruntime

    model = _parsed(path)
    _check_external(path, model)
    check_operators(path, model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        found, remedy = _in_words(said_by_runtime(error), model, onnxruntime.__version__)
        raise _unusable(path, found, remedy) from error


def _in_words(said: str, model: "onnx.ModelProto", version: str) -> tuple[str, str]:
    """What ONNX Runtime refuses, and the way out."""
    opset = next((entry.version for entry in model.opset_import if not _domain(entry.domain)), 0)
    if newest := re.search(r"till opset (\d+)", said):
        return (
            f"it is of opset {opset}, and the newest that ONNX Runtime {version} knows is {newest[1]}",
            f"Export it with opset {newest[1]} or older: 17 runs everywhere",
        )
    if newest := re.search(r"max supported IR version: (\d+)", said):
        return (
            f"its IR version is {model.ir_version}, and the newest that ONNX Runtime {version} knows is "
            f"{newest[1]}",
            "Export it with an older `onnx`, or lower `model.ir_version` where nothing newer is used",
        )
    return (
        f"ONNX Runtime {version} says: {said.rstrip('.')}",
        "`onnx.checker.check_model` may say more; export it again",
    )


def said_by_runtime(error: Exception) -> str:
    """An error of ONNX Runtime without its number, source file and C++ signature: one line."""
    said = " ".join(str(error).split())
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", said)
    return re.sub(r"^(Load model from \S+ failed:)?\s*/\S+\.(cc|h):\d+ .*?\) (?=[A-Z])", "", said)[:500]


def check_operators(path: Path, model: "onnx.ModelProto") -> None:
    """Raises: WorkloadError at the first node whose operator ONNX Runtime does not have."""
    known = _known_operators()
    opsets = {_domain(opset.domain): opset.version for opset in model.opset_import}
    local = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model.graph):
        domain = _domain(node.domain)
        if (domain, node.op_type) in local:
            continue
        since = known.get((domain, node.op_type))
        if since is None:
            raise _unusable(path, f"there is no operator {called(node)}", _nearest(node.op_type, known))
        if since > opsets.get(domain, since):
            raise _unusable(
                path,
                f"{called(node)} came with opset {since}, and the file says {opsets[domain]}",
                f"Export it with opset {since} or later",
            )


def _domain(name: str) -> str:
    """ONNX's own domain has two names."""
    return "" if name == "ai.onnx" else name


def _known_operators() -> dict[tuple[str, str], int]:
    """Domain and name of every operator that ONNX Runtime has, and the opset that it came with."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str], int] = {}
    for schema in state.get_all_operator_schema():
        key = (schema.domain, schema.name)
        found[key] = min(schema.since_version, found.get(key, schema.since_version))
    return found


def _nearest(name: str, known: Any) -> str:
    """The way out of an unknown operator: those of ONNX that are called like it."""
    names = {operator: domain for domain, operator in known if domain in ("", "com.microsoft")}
    close = get_close_matches(name, names, n=3, cutoff=0.7)
    shown = [f"{names[n]}:{n}" if names[n] else n for n in close]
    hint = f"Nearest are {', '.join(shown)}. " if shown else ""
    return f"{hint}Export it with ONNX's own operators, or rewrite what it stands for"


def _reader(model: "onnx.ModelProto", tensor: str) -> str:
    node = next((node for node in nodes(model.graph) if tensor in node.input), None)
    return "no node" if node is None else called(node)


def _unusable(path: Path, found: str, remedy: str) -> WorkloadError:
    return WorkloadError(f"{path} must be an ONNX file that ONNX Runtime can run", found, remedy)
