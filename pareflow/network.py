"""The forms a network takes (torch module, exported program, ONNX graph, OpenVINO model): saved, loaded,
converted.

Techniques change a network within one form; backends run one form. The ways go one direction only, torch →
onnx → openvino or torch → exported, so a recipe's techniques come in that order.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pareflow import exported
from pareflow.catalog import installed_version
from pareflow.errors import BadOutputError, ExportError
from pareflow.variant import digest
from pareflow.workload import Arrays, LoadedWorkload

Form = Literal["torch", "exported", "onnx", "openvino"]
FORMS: tuple[Form, ...] = ("torch", "exported", "onnx", "openvino")
"""A later form is never made into an earlier one, nor `exported` into any other."""
FILES: dict[Form, str] = {
    "torch": "network.pt",
    "exported": "network.pt2",
    "onnx": "model.onnx",
    "openvino": "model.xml",
}
WAYS = "torch → onnx → openvino or torch → exported"
OPSET = 17
"""The legacy exporter's newest, and the graph that ONNX Runtime fuses best (measured, docs/log.md)."""


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
        import torch

        torch.export.save(network, path)
    elif form == "onnx":
        import onnx

        large = network.ByteSize() > 2**30
        onnx.save_model(network, path, save_as_external_data=large, location="model.onnx.data")
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
    """Read a network from `folder`. A torch module needs its workload loaded first: it holds the classes."""
    path = folder / FILES[form]
    if form == "torch":
        import torch

        return torch.load(path, weights_only=False).eval()
    if form == "exported":
        import torch

        return torch.export.load(path)
    if form == "onnx":
        import onnx

        return onnx.load_model(path)
    import openvino

    return openvino.Core().read_model(path)


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
        exported.write(load("torch", folder), workload, name_outputs, into / FILES["exported"])
        return
    if source == "torch":
        target = into / FILES["onnx"]
        export(load("torch", folder), workload, target)
        check_export(load("torch", folder), target, workload)
        source, folder = "onnx", into
    if source == "onnx" and form == "openvino":
        import openvino

        save(openvino.convert_model(folder / FILES["onnx"]), "openvino", into)


def export(network: Any, workload: LoadedWorkload, path: Path) -> None:
    """Write a torch module as an ONNX graph: as its workload does, or as any other. Raises: ExportError."""
    getattr(workload.definition, "export", export_onnx)(network, workload, path)


def export_onnx(network: Any, workload: LoadedWorkload, path: Path) -> None:
    """Export a torch module with a dynamic batch. Raises: ExportError, with the exporter's own words."""
    import torch

    feeds = workload.example(batch_size=2)
    axes = {name: {0: "batch"} for name in feeds} | workload.definition.dynamic_axes()
    outputs = [name for name in axes if name not in feeds] or ["output"]
    axes |= {name: axes.get(name, {0: "batch"}) for name in outputs}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter's deprecation and tracing notes; the check below decides
        try:
            torch.onnx.export(
                network.eval(),
                tuple(torch.from_numpy(array) for array in feeds.values()),
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


def check_export(network: Any, path: Path, workload: LoadedWorkload, tolerance: float = 1e-3) -> None:
    """Compare the graph with its source on real inputs of two batch sizes.

    Raises: ExportError where outputs differ by more than `tolerance` of their largest magnitude.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch_size in (1, 3):
        feeds = workload.example(batch_size)
        expected = run_torch(network, feeds)
        wanted = {node.name: node.type for node in session.get_inputs()}
        try:
            got = session.run(None, {name: array for name, array in feeds.items() if name in wanted})
        except Exception as refusal:
            raise ExportError(
                "the exported graph must take what its source takes",
                f"at batch size {batch_size} ONNX Runtime says: {str(refusal).strip().splitlines()[0]}",
                "Look for sizes that the exporter fixed",
            ) from refusal
        for ours, theirs in zip(expected.values(), got, strict=True):
            scale = max(float(np.abs(ours).max()), 1e-6)
            error = float(np.abs(ours - theirs).max()) / scale
            if not error <= tolerance:
                raise ExportError(
                    f"the exported graph must agree with its source within {tolerance:g}",
                    f"it differs by {error:g} of the largest output at batch size {batch_size}",
                    "Look for control flow that depends on the data or on the batch size",
                )


def form_of_network(network: Any) -> Form:
    """The form of what a workload's `network()` gives."""
    import onnx

    return "onnx" if isinstance(network, onnx.ModelProto) else "torch"


def runner(folder: Path) -> Callable[[Arrays], Arrays]:
    """The network of `folder` as a function of named arrays, as it is: variants are compared with it."""
    if form_of(folder) == "torch":
        module = load("torch", folder)
        return lambda feeds: run_torch(module, feeds)
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILES["onnx"], providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    taken = {node.name for node in session.get_inputs()}

    def run(feeds: Arrays) -> Arrays:
        given = {name: array for name, array in feeds.items() if name in taken}
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def run_torch(network: Any, feeds: Arrays) -> Arrays:
    """One forward pass of a torch module over named arrays; outputs are named `output`, `output_1`, …"""
    import torch

    device = next(network.parameters(), torch.empty(0)).device
    with torch.inference_mode():
        given = network(*(torch.from_numpy(array).to(device) for array in feeds.values()))
    return name_outputs(given, lambda tensor: tensor.float().cpu().numpy())


def name_outputs(given: Any, to_numpy: Callable[[Any], np.ndarray]) -> Arrays:
    """A network's outputs (one, a tuple, or a mapping such as transformers gives) as named arrays."""
    if isinstance(given, dict):
        return {name: to_numpy(value) for name, value in given.items()}
    values = given if isinstance(given, (tuple, list)) else (given,)
    return {f"output_{i}" if i else "output": to_numpy(value) for i, value in enumerate(values)}


def check_outputs(outputs: Arrays, samples: int) -> None:
    """Raises: BadOutputError where an output has NaN or infinity, or not one row per sample."""
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise BadOutputError(
                "every output must be finite",
                f"`{name}` has {bad} NaN or infinite values",
                "Drop the candidate",
            )
        if array.shape[:1] != (samples,):
            raise BadOutputError(
                "every output must have one row per sample",
                f"`{name}` has shape {array.shape} for {samples} samples",
                "Mend the network, or its export",
            )


def code_version() -> str:
    """A digest of this file and of the exporters' versions: part of the name of every converted network."""
    exporters = ("torch", "onnx", "openvino", "optimum-onnx")
    sources = [Path(file).read_text() for file in (__file__, exported.__file__)]
    return digest(sources, {name: installed_version(name) for name in exporters})
