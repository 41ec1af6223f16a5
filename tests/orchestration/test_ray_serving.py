"""The same server as replicas on Ray: two nodes of this machine, one of which is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.errors import EnvironmentUnfitError
from pareflow.variant import Step
from tasks.ray_serving import Model, room_of
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


ROOMS: Mapping[str, tuple[list[Model], int, tuple[int, int]]] = {
    "left open: all of the node": ([Model(1, None)], 8, (8, 8)),
    "of two threads each": ([Model(2, None)], 5, (2, 4)),
    "planned for a larger machine": ([Model(1, 16)], 8, (8, 8)),
    "planned for less": ([Model(1, 2)], 8, (8, 2)),
    "planned, with threads": ([Model(4, 2)], 8, (2, 8)),
    "two models": ([Model(1, None), Model(2, 1)], 8, (2, 4)),
    "a language model": ([Model(None, 1)], 8, (8, 8)),
}


@pytest.mark.parametrize(("models", "processors", "room"), ROOMS.values(), ids=ROOMS)
def test_a_replica_has_the_processors_of_its_sessions_and_no_more_than_a_node(
    models: list[Model], processors: int, room: tuple[int, int]
) -> None:
    assert room_of(models, processors) == room


@pytest.mark.parametrize(
    ("models", "processors"), [([Model(4, None)], 2), ([Model(1, None)] * 3, 2), ([Model(1, 1)], 0)]
)
def test_a_replica_that_no_node_holds_is_refused(models: list[Model], processors: int) -> None:
    with pytest.raises(EnvironmentUnfitError, match=f"and the largest node has {processors}"):
        room_of(models, processors)


WIDE = """
import runpy
from pareflow.hardware import probe
probe.cores = lambda: tuple(range(64))
runpy.run_module("flows.cli", run_name="__main__")
"""
LEFT = """
import sys, ray
from ray import serve
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(serve.status().applications)
"""


@pytest.mark.slow
def test_a_node_is_asked_for_what_it_has_whatever_the_commands_machine_has(
    cluster: Any, packaged: Callable[..., Path]
) -> None:
    words = [sys.executable, "-c", WIDE, "serve", str(packaged("images")), "--port", "18124"]
    words += ["--engine", "ray", "--ray-address", cluster.address, "--replicas", "1", "1"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(words, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True)
    patience = threading.Timer(PATIENCE_S, process.kill)
    patience.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "http://127.0.0.1:18124"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        patience.cancel()
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_what_cannot_be_served_ends_with_its_error_and_leaves_nothing_on_the_cluster(
    cluster: Any,
    pareflow_command: Callable[..., "subprocess.CompletedProcess[str]"],
    packaged: Callable[..., Path],
    make_package: Callable[..., Path],
    workloads: Path,
    blank_mlflow: Path,
    tmp_path: Path,
) -> None:
    """No node holds it; there is no such version; and only the node sees what is missing."""

    def refused(target: object, *more: object) -> "subprocess.CompletedProcess[str]":
        on = ("--engine", "ray", "--ray-address", cluster.address, "--port", 18125)
        done = pareflow_command("serve", target, *on, *more)
        assert "Traceback" not in done.stderr
        return done

    backend = Step("onnxruntime", {"threads": 4})
    wide = make_package({"file": {"path": "images.py"}}, workloads, tmp_path / "store", backend, "wide")
    done = refused(wide)
    assert done.returncode == 4
    assert "they compute on 4, and the largest node has 2" in " ".join(done.stderr.split())
    data_dir = shutil.copytree(blank_mlflow, tmp_path / "data")
    done = refused("models:/none@champion", "--data-dir", data_dir)
    assert done.returncode == 2
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"sessions": 1, "tiers": {"small": str(tmp_path / "absent")}}))
    done = refused(packaged("images"), "--plan", plan)
    assert done.returncode == 4
    assert "every replica must begin on its node, but one does not" in " ".join(done.stderr.split())
    asked = [sys.executable, "-c", LEFT, cluster.address]
    assert subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout == "{}\n"
