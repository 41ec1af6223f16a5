"""A served model for KServe: an InferenceService that runs `python -m pareflow.serving` on the package.

The pod speaks the Open Inference Protocol, so that KServe's routes and probes fit. The package is fetched by
KServe from `storage_uri` into /mnt/models; the plan travels as a file beside it. The pod asks for the
same keys as that of `infra/kubernetes/base/serving.yaml`, is as guarded, and may begin and end as slowly, in
KServe's mode `RawDeployment`: Knative takes no `preStop`.
Source: kserve.io, InferenceService v1beta1, custom predictors with `storageUri`;
knative/serving, pkg/apis/serving/fieldmask.go.
"""

import re
from typing import Any

MOUNT = "/mnt/models"
PLAN_FILE = "plan.yaml"
PORT = 8080
KEYS = "pareflow-serving"
"""The Secret with `PAREFLOW_API_KEYS`: who may ask. Without it the pod does not start."""


def inference_service(
    name: str, *, image: str, storage_uri: str, cores: int, memory_mib: int
) -> dict[str, Any]:
    """The resource, as YAML holds it. `cores` are those that the sessions compute on."""
    resources = {"cpu": str(cores), "memory": f"{memory_mib}Mi"}
    command = ["python", "-m", "pareflow.serving", MOUNT]
    arguments = ["--plan", f"{MOUNT}/{PLAN_FILE}", "--host", "0.0.0.0", "--port", str(PORT)]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": _named(name),
            "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
        },
        "spec": {
            "predictor": {
                "terminationGracePeriodSeconds": 60,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [
                    {
                        "name": "kserve-container",
                        "image": image,
                        "command": command,
                        "args": arguments,
                        "env": [
                            {"name": "STORAGE_URI", "value": storage_uri},
                            {"name": "PROTOCOL", "value": "v2"},
                        ],
                        "envFrom": [{"secretRef": {"name": KEYS}}],
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
                        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
                        "startupProbe": {**_probe("live", every_s=2), "failureThreshold": 150},
                        "readinessProbe": _probe("ready", every_s=2),
                        "livenessProbe": _probe("live", every_s=10),
                        "resources": {"requests": resources, "limits": resources},
                    }
                ],
            }
        },
    }


def _probe(kind: str, every_s: int) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{kind}", "port": PORT}, "periodSeconds": every_s}


def _named(name: str) -> str:
    """The name as KServe takes one: small letters, digits and hyphens, a letter first, no hyphen last.

    Source: kserve/kserve, pkg/apis/serving/v1beta1, `IsvcNameFmt`.
    """
    plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain if plain[:1].isalpha() else f"model-{plain}".rstrip("-")
