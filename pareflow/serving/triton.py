"""A served model for Triton: a repository with the network as it was judged, and the plan as its config.

    NAME/config.pbtxt    inputs, outputs, batches, sessions, response cache
    NAME/1/model.onnx    or model.xml and model.bin

It serves the network: tensors in, tensors out. Processing and predictions stay with the caller, or before
Triton. Source: triton-inference-server/common, protobuf/model_config.proto; server, docs/user_guide.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pareflow.compiler.backend import backend_of
from pareflow.errors import InputError
from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.caching import ExactCache
from pareflow.serving.executable import Tensor, described
from pareflow.serving.model import PackagedModel, verified
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
    """For a process of its own: the tensors of a package's network."""
    inputs, outputs = described(PackagedModel(Path(folder)))
    return {
        "inputs": [tensor.to_json() for tensor in inputs],
        "outputs": [tensor.to_json() for tensor in outputs],
    }


def write(
    package: Path, plan: ServingPlan, inputs: Sequence[Tensor], outputs: Sequence[Tensor], into: Path
) -> list[str]:
    """Write the model into the repository `into`; what of the plan Triton lacks, and
    what of the backend's settings is not carried, in words.

    Raises: InputError where Triton cannot read what the variant is made of.
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
    folder = into / document["pipeline"]
    (folder / "1").mkdir(parents=True)
    for path in (package / "artifact").glob("model*"):
        shutil.copy2(path, folder / "1" / path.name)
    lines = _config(document["pipeline"], kind, backend, plan, inputs, outputs)
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")
    return [*(f"{what} {_LEFT_OUT}" for what in _left_out(plan)), *_not_carried(backend)]


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
    batching = next((one for one in plan.chosen() if isinstance(one, DynamicBatching)), None)
    yield f"name: {json.dumps(name)}"
    yield f"backend: {json.dumps(kind)}"
    yield f"max_batch_size: {batching.max_batch_size if batching else 1}"
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
