"""A served model for KServe: an InferenceService that runs `python -m pareflow.serving` on the package.

The pod speaks the Open Inference Protocol, so that KServe's routes and probes fit. The package is fetched by
KServe from `storage_uri` into /mnt/models; the plan travels as a file beside it.
Source: kserve.io, InferenceService v1beta1, custom predictors with `storageUri`.
"""

import re
from typing import Any

from pareflow.serving.plan import ServingPlan

MOUNT = "/mnt/models"
PLAN_FILE = "plan.yaml"
PORT = 8080


def inference_service(
    name: str, plan: ServingPlan, *, image: str, storage_uri: str, threads: int, memory_mib: int
) -> dict[str, Any]:
    """The resource, as YAML holds it. Processors are those that the sessions compute on."""
    cores = str((plan.sessions or 1) * threads)
    resources = {"cpu": cores, "memory": f"{memory_mib}Mi"}
    command = ["python", "-m", "pareflow.serving", MOUNT]
    arguments = ["--plan", f"{MOUNT}/{PLAN_FILE}", "--host", "0.0.0.0", "--port", str(PORT)]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _named(name)},
        "spec": {
            "predictor": {
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
                        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
                        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": PORT}},
                        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": PORT}},
                        "resources": {"requests": resources, "limits": resources},
                    }
                ]
            }
        },
    }


def _named(name: str) -> str:
    """The name as KServe takes one: small letters, digits and hyphens, a letter first, no hyphen last.

    Source: kserve/kserve, pkg/apis/serving/v1beta1, `IsvcNameFmt`.
    """
    plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain if plain[:1].isalpha() else f"model-{plain}".rstrip("-")
