"""The same server as replicas on Ray: two nodes of this machine, one of which is killed."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.orchestration.conftest import CHECKOUT

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytest.importorskip("ray.serve")
SMALL = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "memory": 2**30}
PATIENCE_S = 120.0


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of a head and one more node."""
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=SMALL)
    found.add_node(**SMALL)
    yield found
    found.shutdown()


def post(url: str, images: np.ndarray) -> list[float]:
    tensor = {
        "name": "images",
        "datatype": "FP32",
        "shape": list(images.shape),
        "data": images.ravel().tolist(),
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{url}/v2/models/images/infer", body)
    with urllib.request.urlopen(request, timeout=30) as answer:
        values: list[float] = json.loads(answer.read())["outputs"][0]["data"]
    return values


@pytest.mark.slow
def test_two_nodes_serve_and_one_goes_on_alone(
    cluster: Any, packaged: Callable[..., Path], tmp_path: Path
) -> None:
    """The answers are the network's golden ones, from both nodes, and again after one was killed."""
    package = packaged("images")
    golden = json.loads((package / "golden.json").read_text())
    images = np.asarray(golden["samples"], dtype=np.float32)[:, None]
    expected = np.asarray(golden["outputs"]["output"]).ravel()
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"sessions": 2}))  # as many processors as a node has: each takes one replica
    words = [sys.executable, "-m", "flows.cli", "serve", str(package), "--plan", str(plan), "--port", "18123"]
    words += ["--engine", "ray", "--ray-address", cluster.address, "--replicas", "2", "2"]
    process = subprocess.Popen(
        words,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == "http://127.0.0.1:18123"
        for _ in range(10):
            assert np.allclose(post(url, images), expected, atol=1e-4)
        (other,) = cluster.worker_nodes
        other.all_processes["raylet"][0].process.kill()
        until, right = time.monotonic() + PATIENCE_S, 0
        while right < 10:
            try:
                right = right + 1 if np.allclose(post(url, images), expected, atol=1e-4) else 0
            except (urllib.error.URLError, TimeoutError):
                right = 0  # asked of the node that is gone
            assert time.monotonic() < until
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_an_address_that_does_not_answer_is_told(
    pareflow_command: Callable[..., "subprocess.CompletedProcess[str]"], packaged: Callable[..., Path]
) -> None:
    words = ["serve", packaged("images"), "--engine", "ray", "--ray-address", "127.0.0.1:9"]
    done = pareflow_command(*words)
    assert done.returncode == 4, done.stderr
    done = pareflow_command("serve", packaged("images"), "--engine", "ray", "--replicas", 3, 2)
    assert done.returncode == 2
    assert "must be at most the largest" in done.stderr
