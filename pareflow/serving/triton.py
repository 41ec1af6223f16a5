"""A served model for Triton: a repository with the network as it was judged, and the plan as its config.

    NAME/config.pbtxt    inputs, outputs, batches, sessions, response cache
    NAME/1/model.onnx    or model.xml and model.bin

It serves the network: tensors in, tensors out. Processing and predictions stay with the caller, or before
Triton. Source: triton-inference-server/common, protobuf/model_config.proto; server, docs/user_guide.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pareflow import graph_file
from pareflow.compiler.backend import backend_of
from pareflow.errors import InputError
from pareflow.network import openvino_core, openvino_ports
from pareflow.ports import Port
from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.caching import ExactCache
from pareflow.serving.executable import Tensor, described
from pareflow.serving.model import PackagedModel, verified
from pareflow.serving.output import new_folder
from pareflow.serving.plan import ServingPlan
from pareflow.variant import Step

BACKENDS = {
    "onnxruntime": ("onnxruntime", ("model.onnx",)),
    "openvino": ("openvino", ("model.xml", "model.bin")),
}
"""By backend: Triton's name of it, and the files that it reads."""
_CARRIED = {"threads", "saved"}
"""Settings that the config says, or the files that are copied."""
_LEFT_OUT = "has no counterpart in Triton"


def describe(folder: str) -> dict[str, list[dict[str, object]]]:
    """For a process of its own: the tensors of a package's network, open where its graph is."""
    package = PackagedModel(Path(folder))
    declared = _declared(Path(folder) / "artifact", package.backend.name)
    inputs, outputs = described(package)
    return {
        "inputs": [_opened(tensor, declared).to_json() for tensor in inputs],
        "outputs": [_opened(tensor, declared).to_json() for tensor in outputs],
    }


def _declared(artifact: Path, backend: str) -> dict[str, Port]:
    """What the files that Triton reads say of inputs and outputs, by name."""
    ports: Sequence[Port] = ()
    if backend == "openvino" and (artifact / "model.xml").exists():
        model = openvino_core().read_model(artifact / "model.xml")
        ports = openvino_ports([*model.inputs, *model.outputs]).ports
    elif backend == "onnxruntime" and (artifact / "model.onnx").exists():
        import onnx

        graph = onnx.load(artifact / "model.onnx", load_external_data=False)
        ports = (*graph_file.ports(graph).ports, *graph_file.outputs(graph).ports)
    return {port.name: port for port in ports}


def _opened(tensor: Tensor, declared: Mapping[str, Port]) -> Tensor:
    """The tensor, whose sizes vary where the graph says so, however alike the golden samples are."""
    port = declared.get(tensor.name)
    if port is None or port.shape is None or len(port.shape) != len(tensor.shape):
        return tensor
    sizes = zip(tensor.shape, port.shape, strict=True)
    return replace(tensor, shape=tuple(-1 if theirs is None else ours for ours, theirs in sizes))


def write(
    package: Path, plan: ServingPlan, inputs: Sequence[Tensor], outputs: Sequence[Tensor], into: Path
) -> list[str]:
    """Write the model into the repository `into`; what of the plan Triton lacks, and
    what of the backend's settings is not carried, in words.

    Raises: InputError where Triton cannot read what the variant is made of; as `new_folder`.
    """
    document = verified(package)
    backend = Step.from_json(document["backend"])
    kind, files = BACKENDS.get(backend.name, ("", ()))
    absent = [name for name in files if not (package / "artifact" / name).exists()]
    if not files or absent:
        readable = " and ".join(sorted(BACKENDS))
        raise InputError(
            f"a model for Triton must run on {readable}, in files that are not packed",
            f"{document['pipeline']} runs on {backend.label}",
            "Serve it by `pareflow serve`, or list other candidates",
        )
    lines = _config(document["pipeline"], kind, backend, plan, inputs, outputs)
    with new_folder(into / document["pipeline"]) as folder:
        (folder / "1").mkdir()
        for path in (package / "artifact").glob("model*"):
            shutil.copy2(path, folder / "1" / path.name)
        (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")
    lacking = (f"{what} {_LEFT_OUT}" for what in _left_out(plan))
    return [_largest(plan), *lacking, *_not_carried(backend)]


def _largest(plan: ServingPlan) -> str:
    """What our server answers alone, however large, and Triton does not."""
    most = f"`max_batch_size` ({_batch_size(plan)})"
    return f"a request of more samples than {most} is refused by Triton: ask for no more at once"


def _joins(plan: ServingPlan) -> DynamicBatching | None:
    return next((one for one in plan.chosen() if isinstance(one, DynamicBatching)), None)


def _batch_size(plan: ServingPlan) -> int:
    batching = _joins(plan)
    return batching.max_batch_size if batching else 1


def _not_carried(backend: Step) -> Iterator[str]:
    """What the backend was set to and Triton is not, in words."""
    member = backend_of(backend)
    for name, field in type(member).model_fields.items():
        value = getattr(member, name)
        if name == "precision":  # ours is not OpenVINO's own default
            yield (
                f"`precision: {value}` of `{backend.name}` is not carried to Triton, whose OpenVINO computes "
                "in bf16 where the processor can: judge its answers there"
            )
        elif name not in _CARRIED and value != field.default:
            said = json.dumps(value, default=str)
            yield f"`{name}: {said}` of `{backend.name}` is not carried to Triton"


def _left_out(plan: ServingPlan) -> Iterator[str]:
    """The parts of a plan that `_config` cannot say."""
    batched = False
    for policy in plan.chosen():
        if isinstance(policy, DynamicBatching):
            batched = True
            if policy.pad_axis is not None:
                yield f"`pad_axis` of `{policy.name}`, by which requests of other lengths go together,"
        elif not isinstance(policy, ExactCache):
            yield f"`{policy.name}`"
    if plan.deadline_ms is not None and not batched:
        yield f"`deadline_ms` without `{DynamicBatching.name}`"


def _config(
    name: str,
    kind: str,
    backend: Step,
    plan: ServingPlan,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> Iterator[str]:
    batching = _joins(plan)
    yield f"name: {json.dumps(name)}"
    yield f"backend: {json.dumps(kind)}"
    yield f"max_batch_size: {_batch_size(plan)}"
    for field, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            datatype = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
            named = f"name: {json.dumps(tensor.name)} data_type: {datatype}"
            yield f"{field} {{ {named} {_sizes(tensor)} }}"
    threads = int(backend.settings.get("threads", 1))
    yield f"instance_group {{ count: {plan.sessions_of(threads)} kind: KIND_CPU }}"
    if batching is not None:
        yield from _batching(batching, plan)
    if any(isinstance(one, ExactCache) for one in plan.chosen()):
        yield "response_cache { enable: true }"  # tritonserver --cache-config local,size=…
    key = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}[kind]
    yield f'parameters {{ key: "{key}" value {{ string_value: "{threads}" }} }}'


def _sizes(tensor: Tensor) -> str:
    """What each sample holds. One value is a row of one for Triton, and none for the network."""
    dims = ", ".join(map(str, tensor.shape[1:]))
    return f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"


def _batching(batching: DynamicBatching, plan: ServingPlan) -> Iterator[str]:
    """The line: what is worth waiting for, how long, and how many may wait."""
    yield "dynamic_batching {"
    if batching.min_batch_size > 1:
        yield f"  preferred_batch_size: [ {batching.min_batch_size}, {batching.max_batch_size} ]"
    yield f"  max_queue_delay_microseconds: {round(batching.max_wait_ms * 1000)}"
    yield "  default_queue_policy {"
    yield f"    max_queue_size: {batching.max_waiting}"
    if plan.deadline_ms is not None:
        yield "    timeout_action: REJECT"
        yield f"    default_timeout_microseconds: {round(plan.deadline_ms * 1000)}"
    yield "  }"
    yield "}"
