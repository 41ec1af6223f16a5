"""What other servers are given: Triton's model repository, KServe's InferenceService."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from pareflow.errors import InputError
from pareflow.hardware import probe
from pareflow.serving import triton
from pareflow.serving.executable import Tensor
from pareflow.serving.kserve import inference_service
from pareflow.serving.plan import ServingPlan
from pareflow.spec import NAME
from pareflow.stages.exporting import export_kserve, export_triton
from pareflow.variant import Step

Packaged = Callable[..., Path]
PLAN = ServingPlan(
    sessions=2,
    deadline_ms=50,
    policies=(
        {"exact_cache": {}},
        {"dynamic_batching": {"max_batch_size": 4, "min_batch_size": 2, "max_wait_ms": 1.5}},
    ),
)


def refused(samples: int) -> str:
    most = f"`max_batch_size` ({samples})"
    return f"a request of more samples than {most} is refused by Triton: ask for no more at once"


def parsed(path: Path) -> Any:
    """Triton's own message of a `config.pbtxt`. Raises: google.protobuf.text_format.ParseError."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_triton_reads_the_plan(packaged: Packaged, tmp_path: Path) -> None:
    found = export_triton(packaged("images"), PLAN, tmp_path, tmp_path)
    assert found["files"] == ["images/1/model.onnx", "images/config.pbtxt"]
    config = parsed(tmp_path / "images" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("images", "onnxruntime", 4)
    (given,) = config.input
    assert (given.name, list(given.dims)) == ("images", [1, 8, 8])
    assert (
        given.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[given.data_type].name
        == "TYPE_FP32"
    )
    assert (config.instance_group[0].count, config.response_cache.enable) == (2, True)
    batching = config.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([2, 4], 1500)
    assert batching.default_queue_policy.default_timeout_microseconds == 50_000
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_the_repositorys_network_gives_the_golden_outputs(packaged: Packaged, tmp_path: Path) -> None:
    """Parity: by the runtime that Triton's backend runs, through the names of the config."""
    package = packaged("images")
    export_triton(package, PLAN, tmp_path, tmp_path)
    config = parsed(tmp_path / "images" / "config.pbtxt")
    session = onnxruntime.InferenceSession(tmp_path / "images" / "1" / "model.onnx")
    golden = json.loads((package / "golden.json").read_text())
    samples = np.asarray(golden["samples"], dtype=np.float32).reshape(-1, *config.input[0].dims)
    (found,) = session.run([config.output[0].name], {config.input[0].name: samples})
    assert np.allclose(found, np.asarray(golden["outputs"][config.output[0].name]), atol=1e-5)


def test_without_batching_every_request_is_its_own_batch(packaged: Packaged, tmp_path: Path) -> None:
    found = export_triton(packaged("texts"), ServingPlan(policies=()), tmp_path, tmp_path)
    assert found["left_out"] == [refused(1)]
    config = parsed(tmp_path / "texts" / "config.pbtxt")
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in config.input] == [[12], [12]]


def test_one_value_per_sample_is_reshaped_from_tritons_row_of_one(packaged: Packaged, tmp_path: Path) -> None:
    """Triton takes no empty `dims`."""
    tensors = [Tensor("score", "FP32", (-1,)), Tensor("row", "FP32", (-1, 4))]
    triton.write(packaged("images"), ServingPlan(), tensors, tensors, tmp_path)
    config = parsed(tmp_path / "images" / "config.pbtxt")
    for score, row in (config.input, config.output):
        assert (list(score.dims), score.HasField("reshape"), list(score.reshape.shape)) == ([1], True, [])
        assert (list(row.dims), row.HasField("reshape")) == ([4], False)


def test_sessions_are_those_that_our_server_would_take(packaged: Packaged, tmp_path: Path) -> None:
    """One thread each: as many as there are cores to use."""
    export_triton(packaged("images"), ServingPlan(), tmp_path, tmp_path)
    (group,) = parsed(tmp_path / "images" / "config.pbtxt").instance_group
    assert group.count == probe.usable_cores()


@pytest.mark.parametrize("backend", [Step("onnxruntime", {"threads": 1}), Step("openvino", {"threads": 1})])
@pytest.mark.parametrize(("any_length", "size"), [(True, -1), (False, 6)])
def test_a_size_that_the_graph_leaves_open_is_open_however_alike_samples_are(
    make_package: Callable[..., Path],
    workloads: Path,
    tmp_path: Path,
    backend: Step,
    any_length: bool,
    size: int,
) -> None:
    """All are filled up to six numbers."""
    reference = {"file": {"path": "ragged.py", "settings": {"any_length": any_length}}}
    found = triton.describe(str(make_package(reference, workloads, tmp_path / "store", backend, "ragged")))
    assert [(one["name"], one["shape"]) for one in found["inputs"]] == [("readings", [-1, size])]
    assert [one["shape"] for one in found["outputs"]] == [[-1, 1]]


@pytest.mark.parametrize(
    ("plan", "left_out"),
    [
        (
            {"policies": [{"dynamic_batching": {"pad_axis": 1, "pad_to": [16]}}]},
            ["`pad_axis` of `dynamic_batching`, by which requests of other lengths go together,"],
        ),
        ({"deadline_ms": 50, "policies": []}, ["`deadline_ms` without `dynamic_batching`"]),
        (
            {"policies": [{"deadline_routing": {}}, {"exact_cache": {}}, {"dynamic_batching": {}}]},
            ["`deadline_routing`"],
        ),
    ],
)
def test_what_triton_lacks_is_said(
    packaged: Packaged, tmp_path: Path, plan: Mapping[str, Any], left_out: list[str]
) -> None:
    tensors = [Tensor("x", "FP32", (-1, 4))]
    largest, *found = triton.write(packaged("images"), ServingPlan(**plan), tensors, tensors, tmp_path)
    assert largest == refused(8 if "dynamic_batching" in str(plan) else 1)
    assert found == [f"{what} has no counterpart in Triton" for what in left_out]


@pytest.mark.parametrize(
    ("backend", "left_out"),
    [
        (
            Step("onnxruntime", {"threads": 2, "graph_level": "basic", "without": ["fusion"]}),
            ['`graph_level: "basic"`', '`without: ["fusion"]`'],
        ),
        (Step("openvino", {"threads": 2}), ["`precision: f32`"]),
        (
            Step("openvino", {"threads": 2, "static_shapes": True}),
            ["`precision: f32`", "`static_shapes: true`"],
        ),
    ],
)
def test_settings_that_triton_is_not_given_are_said(
    make_package: Callable[..., Path],
    workloads: Path,
    tmp_path: Path,
    backend: Step,
    left_out: list[str],
) -> None:
    reference = {"file": {"path": "ragged.py"}}
    package = make_package(reference, workloads, tmp_path / "store", backend, "ragged")
    tensors = [Tensor("x", "FP32", (-1, 4))]
    _, *found = triton.write(package, ServingPlan(policies=()), tensors, tensors, tmp_path / "repository")
    assert len(found) == len(left_out)
    for said, setting in zip(found, left_out, strict=True):
        assert said.startswith(f"{setting} of `{backend.name}` is not carried to Triton")


def test_a_pod_is_given_no_policies_that_ask_for_other_versions(packaged: Packaged, tmp_path: Path) -> None:
    """What is calibrated, and what names tiers, would keep it from starting."""
    record = {"variants": {"small": "a", "full": "b"}, "max_drop": 0.01, "confidence": 0.95, "samples": 600}
    record |= {"drop": 0.0, "score": "max_softmax", "threshold": 0.9, "answered": {"small": 0.5}}
    policies: Any = ({"confidence_cascade": {"calibration": record}}, {"exact_cache": {}})
    plan = ServingPlan(tiers={"small": "models:/images/1"}, sessions=2, policies=policies)
    found = export_kserve(packaged("images"), plan, tmp_path / "kserve", **CLUSTER)
    words = "asks for registered versions, and the pod has one package"
    assert found["left_out"] == [f"`confidence_cascade` {words}", f"the tier `small` {words}"]
    written = yaml.safe_load((tmp_path / "kserve" / "model" / "plan.yaml").read_text())
    assert written == {"sessions": 2, "policies": [{"exact_cache": {}}]}

    policies = ({"deadline_routing": {}},)
    plan = ServingPlan(tiers={"small": "models:/images/1", "tiny": "models:/images/2"}, policies=policies)
    found = export_kserve(packaged("images"), plan, tmp_path / "routed", **CLUSTER)
    assert found["left_out"] == [f"the tier `small` {words}", f"the tier `tiny` {words}"]
    written = yaml.safe_load((tmp_path / "routed" / "model" / "plan.yaml").read_text())
    assert written == {"sessions": 1, "policies": [*policies]}


def test_a_variant_that_triton_cannot_read_is_refused(packaged: Packaged, tmp_path: Path) -> None:
    package = packaged("images", Step("torch_eager"))
    with pytest.raises(InputError, match="a model for Triton must run on onnxruntime and openvino"):
        export_triton(package, PLAN, tmp_path, tmp_path)
    export_triton(packaged("images"), PLAN, tmp_path, tmp_path)
    with pytest.raises(InputError, match="an output must not overwrite"):
        export_triton(packaged("images"), PLAN, tmp_path, tmp_path)


CLUSTER: Mapping[str, Any] = {"image": "pareflow:1", "storage_uri": "s3://models/images", "memory_mib": 512}


def test_kserve_is_told_what_runs_and_how_it_is_probed(packaged: Packaged, tmp_path: Path) -> None:
    to = tmp_path / "kserve"
    export_kserve(packaged("images"), PLAN, to, **CLUSTER)
    service = yaml.safe_load((to / "inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "512Mi"}
    assert {"name": "STORAGE_URI", "value": "s3://models/images"} in container["env"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    with pytest.raises(InputError, match="an output must not overwrite"):
        export_kserve(packaged("images"), PLAN, to, **CLUSTER)


def test_a_pod_begins_and_ends_as_slowly_as_the_deployments_and_is_as_guarded(
    packaged: Packaged, tmp_path: Path
) -> None:
    """A large model loads for minutes, and is alive only then; whoever still sends to it is told in time.

    It asks for keys, and a namespace that is `restricted` lets it in.
    """
    to = tmp_path / "kserve"
    export_kserve(packaged("images"), PLAN, to, **CLUSTER)
    service = yaml.safe_load((to / "inferenceservice.yaml").read_text())
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "RawDeployment"}
    manifest = Path(__file__).parents[2] / "infra" / "kubernetes" / "base" / "serving.yaml"
    deployment = next(yaml.safe_load_all(manifest.read_text()))["spec"]["template"]["spec"]
    pod = service["spec"]["predictor"]
    (ours,) = pod["containers"]
    (theirs,) = [one for one in deployment["containers"] if one["name"] == "serving"]
    assert pod["terminationGracePeriodSeconds"] == deployment["terminationGracePeriodSeconds"]
    assert ours["lifecycle"] == theirs["lifecycle"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = {**theirs[name]["httpGet"], "port": 8080}
        assert ours[name] == {**theirs[name], "httpGet": asked}
    for name in ("runAsNonRoot", "seccompProfile"):
        assert pod["securityContext"][name] == deployment["securityContext"][name]
    for name in ("allowPrivilegeEscalation", "capabilities"):
        assert ours["securityContext"][name] == theirs["securityContext"][name]
    assert {"secretRef": {"name": "pareflow-serving"}} in theirs["envFrom"]
    assert ours["envFrom"] == [{"secretRef": {"name": "pareflow-serving"}}]  # the keys of who may ask
    assert ours["startupProbe"]["periodSeconds"] * ours["startupProbe"]["failureThreshold"] >= 300


@pytest.mark.parametrize(("planned", "sessions"), [(None, 1), (3, 3)])
def test_a_pod_has_the_processors_that_its_sessions_compute_on(
    packaged: Packaged, tmp_path: Path, planned: int | None, sessions: int
) -> None:
    """Left open, they would be as many as its node has cores for."""
    to = tmp_path / "kserve"
    export_kserve(packaged("images"), ServingPlan(sessions=planned), to, **CLUSTER)
    service = yaml.safe_load((to / "inferenceservice.yaml").read_text())
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["resources"]["requests"]["cpu"] == str(sessions)
    assert yaml.safe_load((to / "model" / "plan.yaml").read_text())["sessions"] == sessions


@given(name=st.text() | st.from_regex(NAME, fullmatch=True))
@example(name="2_Texts.")
def test_kserve_takes_the_name(name: str) -> None:
    service = inference_service(name, cores=1, **CLUSTER)
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])


def test_the_pods_command_serves_the_folder(packaged: Packaged, tmp_path: Path) -> None:
    """Parity: the container's own command, with its mount where the folder lies here, and a free port.

    To those who have a key, where the environment names some.
    """
    to = tmp_path / "kserve"
    export_kserve(packaged("images"), PLAN, to, **CLUSTER)
    service = yaml.safe_load((to / "inferenceservice.yaml").read_text())
    (container,) = service["spec"]["predictor"]["containers"]
    words = [
        word.replace("/mnt/models", str(to / "model")) for word in (*container["command"], *container["args"])
    ]
    words = [
        {"python": sys.executable, "8080": "0", "0.0.0.0": "127.0.0.1"}.get(word, word) for word in words
    ]
    keyed = {**os.environ, "PAREFLOW_API_KEYS": "one two"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=keyed)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url + container["readinessProbe"]["httpGet"]["path"]) as answer:
            assert json.loads(answer.read()) == {"ready": True}
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"{url}/v2/models/images")
        refused.value.close()
        asked = urllib.request.Request(f"{url}/v2/models/images", headers={"Authorization": "Bearer two"})
        with urllib.request.urlopen(asked) as answer:
            assert json.loads(answer.read())["inputs"][0]["name"] == "images"
    finally:
        process.terminate()
        process.communicate()
