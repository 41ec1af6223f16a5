"""Building on a Ray cluster: nodes with a folder each, an S3 server between them, and kills.

The nodes are raylets of this machine. Beside them runs the flow's own, which has no processor to build on.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import commands
from flows.environment import SHARED
from pareflow.errors import (
    CrashedError,
    EnvironmentUnfitError,
    InputError,
    KilledError,
    MissingExtraError,
    TransientError,
)
from pareflow.hardware.needs import Machine, Needs
from tasks import cluster
from tests.orchestration.conftest import CHECKOUT, INT8

pytest.importorskip("prefect_ray")
moto = pytest.importorskip("moto.server")
exceptions = pytest.importorskip("ray.exceptions")
CANDIDATES: list[Any] = [INT8, [{"fp16": {}}, "onnxruntime"], [{"torch_eager": {"device": "cuda"}}]]
LONG: list[Any] = [{"distillation": {"student": "narrow", "epochs": 900}}, "onnxruntime"]
NO_GPU = "needs 1 GPU, the cluster has none"
PATIENCE_S = 400.0
SMALL = {"object_store_memory": 80 * 2**20, "memory": 2**30}


@dataclass
class Nodes:
    """A cluster of two nodes, and what the flow must know of it."""

    folder: Path
    variables: dict[str, str]
    cluster: Any
    raylets: dict[str, Any] = field(default_factory=dict)

    def start(self, name: str, **offers: Any) -> None:
        given = {**self.variables, "PAREFLOW_NODE_DATA_DIR": str(self.folder / name)}
        self.raylets[name] = self.cluster.add_node(num_cpus=1, env_vars=given, **offers, **SMALL)

    def kill(self, name: str) -> None:
        """`kill -9` of the node's raylet, reaped: its workers take a zombie for alive."""
        raylet = self.raylets[name].all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()

    def makes(self) -> dict[str, dict[str, int]]:
        """Of each node, and of the flow's machine, the variants that it began to make, and when last."""
        return {name: made_in(self.folder / name) for name in (*self.raylets, "flow")}

    def words(self, config: Path) -> list[str]:
        command = [sys.executable, "-m", "flows.cli", "optimize", str(config), "--json"]
        command += ["--data-dir", str(self.folder / "flow"), "--store", "s3://bucket/shared"]
        return [*command, "--runner", "ray", "--ray-address", self.cluster.address]

    def begin(self, config: Path) -> "subprocess.Popen[bytes]":
        """Start the command; what it says is in `flow.json` and `flow.txt`."""
        with (self.folder / "flow.json").open("wb") as out, (self.folder / "flow.txt").open("wb") as err:
            return subprocess.Popen(
                self.words(config), cwd=CHECKOUT, env={**os.environ, **self.variables}, stdout=out, stderr=err
            )

    def said(self) -> str:
        return (self.folder / "flow.txt").read_text()

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "flow.json").read_text())
        return document

    def training(self, command: "subprocess.Popen[bytes]") -> str:
        """A node in the midst of a training: it leaves a checkpoint from now on."""
        began = time.time()
        while time.time() - began < PATIENCE_S:
            assert command.poll() is None, self.said()
            for name in self.raylets:
                kept = self.folder / name / "store" / "unfinished"
                with suppress(FileNotFoundError):  # a checkpoint that was just replaced
                    if any(path.is_file() and path.stat().st_mtime > began for path in kept.rglob("*")):
                        return name
            time.sleep(0.05)
        raise AssertionError(f"no node began to train: {self.said()}")


def made_in(data_dir: Path) -> dict[str, int]:
    logs = (data_dir / "logs").glob("make-*.log")
    return {path.stem.removeprefix("make-"): path.stat().st_ctime_ns for path in logs}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_REGION": "us-east-1",
        "PYTHONPATH": str(CHECKOUT),
    }
    import boto3

    keys = {"aws_access_key_id": "an-id", "aws_secret_access_key": "a-secret"}
    bucket = boto3.resource("s3", endpoint_url=url, region_name="us-east-1", **keys).Bucket("bucket")
    bucket.create()
    bucket.objects.all().delete()  # moto's servers have one memory
    head = {"num_cpus": 0, "include_dashboard": False, "env_vars": variables, **SMALL}
    found = Nodes(tmp_path, variables, Cluster(initialize_head=True, head_node_args=head))
    for name in ("one", "two"):
        found.start(name)
    found.cluster.wait_for_nodes()
    yield found
    found.cluster.shutdown()
    server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_build_and_the_same_variants_win(
    nodes: Nodes,
    pipeline_file: Callable[..., Path],
    pareflow_command: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    config = pipeline_file("on-ray", candidates=CANDIDATES)
    assert nodes.begin(config).wait(PATIENCE_S) == 0, nodes.said()
    found = nodes.document()
    local = pareflow_command(
        "optimize", config, "--data-dir", nodes.folder / "local", "--no-orchestrator", "--json"
    )
    alone = json.loads(local.stdout)
    assert (found["winner"], found["run_id"]) == (alone["winner"], alone["run_id"])
    assert outcomes(found) == outcomes(alone) | {"torch_eager(device=cuda)": ("unavailable", None)}
    assert [v["reason"] for v in found["variants"] if v["status"] == "unavailable"] == [NO_GPU]
    built = {v["id"][:12] for v in found["variants"] if v["role"] == "candidate" and v["status"] == "ok"}
    made = nodes.makes()
    assert sorted([*made["one"], *made["two"]]) == sorted(built)  # each once, and not by the flow
    assert made["one"]
    assert made["two"]
    assert built & made["flow"].keys() == set()


def outcomes(document: Mapping[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {v["recipe"]: (v["status"], v["id"]) for v in document["variants"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_flow_and_a_killed_raylet_cost_only_what_was_in_flight(
    nodes: Nodes, pipeline_file: Callable[..., Path], entries: Callable[[Path], dict[str, tuple[int, int]]]
) -> None:
    config = pipeline_file("on-ray-killed", candidates=[INT8, LONG])
    flow = nodes.begin(config)
    nodes.training(flow)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    time.sleep(2)  # its workers die with it
    before = entries(nodes.folder / "flow")
    flow = nodes.begin(config)
    killed, when = nodes.training(flow), time.time_ns()
    nodes.kill(killed)
    assert flow.wait(PATIENCE_S) == 0, nodes.said()
    document = nodes.document()
    assert {v["status"] for v in document["variants"]} == {"ok"}
    assert before.items() <= entries(nodes.folder / "flow").items()
    (trained,) = (v["id"][:12] for v in document["variants"] if "distillation" in v["recipe"])
    other = "two" if killed == "one" else "one"
    assert nodes.makes()[other][trained] > when  # begun anew there
    assert list((nodes.folder / "flow" / "store" / "making").iterdir()) == []


LOST = """
import sys, time, ray
from pareflow.errors import TransientError
from pareflow.hardware.needs import Needs
from tasks.cluster import OnRay, _options
ray.init(sys.argv[1], log_to_driver=False)
on_ray, step = OnRay(), Needs(gpus=1)
busy = ray.remote(**_options(step))(lambda: time.sleep(600)).remote()
while ray.available_resources().get("GPU"):
    time.sleep(0.1)
print("builds", flush=True)
try:
    on_ray._wait({busy: step})
except TransientError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_node_that_goes_with_the_only_gpu_is_told_and_not_waited_for(nodes: Nodes) -> None:
    nodes.start("three", num_gpus=1)
    words = [sys.executable, "-c", LOST, nodes.cluster.address]
    with subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "builds\n"
        nodes.kill("three")
        try:
            told, _ = driver.communicate(timeout=60)
        finally:
            driver.kill()
    assert "but a step needs 1 GPU, the cluster has none. Run the same" in told


STOPPED = """
import os, sys, threading, time, ray
from pathlib import Path
from pareflow.errors import TransientError
from pareflow.hardware.needs import Needs
from pareflow.isolation import interrupt
from tasks.cluster import OnRay, _options
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)

@ray.remote(**_options(Needs()))
def build(pid):
    Path(pid).write_text(str(os.getpid()))
    time.sleep(600)

def stop():
    while not Path(pid).exists():
        time.sleep(0.05)
    interrupt()

pid = sys.argv[1]
threading.Thread(target=stop).start()
try:
    OnRay()._wait({build.remote(pid): Needs()})
except TransientError as error:
    print(error)
while Path("/proc", Path(pid).read_text()).exists():
    time.sleep(0.05)
print("ended")
"""


@pytest.mark.slow
def test_ctrl_c_in_the_search_ends_what_is_built_on_the_cluster(tmp_path: Path) -> None:
    words = [sys.executable, "-c", STOPPED, str(tmp_path / "pid")]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert "they were interrupted. Run the same command again" in done.stdout, done.stderr
    assert done.stdout.endswith("ended\n")


def refused(config: Path, data_dir: Path, **options: Any) -> None:
    from rich.console import Console

    commands.optimize(
        config,
        data_dir,
        Console(stderr=True),
        remeasure=False,
        runner="ray",
        **{"orchestrated": True, **options},
    )


def test_an_address_that_nobody_answers_is_told_at_once(
    pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(EnvironmentUnfitError, match=rf"{address} does not.*--ray-address"):
            refused(pipeline_file(), tmp_path, ray_address=address)
    assert not (tmp_path / "prefect").exists()  # nothing was started


def test_nodes_on_other_machines_must_reach_the_server() -> None:
    with pytest.raises(EnvironmentUnfitError, match=r"10\.0\.0\.2 is another machine.*PREFECT_API_URL"):
        cluster._must_be_reached("http://127.0.0.1:4200/api", "10.0.0.1", ["10.0.0.1", "10.0.0.2"])
    cluster._must_be_reached("http://127.0.0.1:4200/api", "10.0.0.1", ["10.0.0.1", "10.0.0.1"])
    cluster._must_be_reached("http://10.0.0.1:4200/api", "10.0.0.1", ["10.0.0.1", "10.0.0.2"])


def test_needs_are_told_to_ray_in_its_units() -> None:
    assert cluster._options(Needs(2, 1, 512)) == {"num_cpus": 2, "num_gpus": 1, "memory": 512 * 2**20}
    assert cluster._options(Needs()) == {"num_cpus": 1, "num_gpus": 0}
    assert cluster._machine({"CPU": 2.0, "GPU": 1.0, "memory": 3.0 * 2**20}) == Machine(2, 1, 3)
    assert cluster._machine({}) == Machine(0, 0, 0)


def test_workers_get_no_credentials_from_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("PAREFLOW_STORE", "s3://bucket/shared")
    runner: Any = cluster.task_runner(None, SHARED)
    given = runner.init_kwargs["runtime_env"]["env_vars"]
    assert given["PAREFLOW_STORE"] == "s3://bucket/shared"
    assert given["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not any(name.startswith("AWS_") for name in given)


def test_without_the_extra_it_is_said_how_to_install_it(
    pipeline_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(MissingExtraError, match=r"pareflow\[ray\]"):
        refused(pipeline_file(), tmp_path)


def test_plain_functions_do_not_go_out_to_a_cluster(
    pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="must run under Prefect"):
        refused(pipeline_file(), tmp_path, orchestrated=False)


class Worked(cluster.OnRay):
    """A cluster without Ray, whose steps have ended."""

    def __init__(self) -> None:
        """Nothing is asked of Ray."""

    def machines(self) -> list[Machine]:
        return [Machine(8, 0, 8000)]

    def _wait(self, pending: Mapping[Any, Needs]) -> None:
        assert len(pending) == 3


@dataclass(frozen=True)
class Future:
    """Of a step that gave a number, or died of an error."""

    wrapped_future: Any

    def result(self) -> Any:
        if isinstance(self.wrapped_future, Exception):
            raise self.wrapped_future
        return self.wrapped_future


STEP: Any = SimpleNamespace(submit=Future)


def test_a_step_that_takes_its_worker_along_is_one_error_and_the_others_arrive() -> None:
    low = exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory: …")
    first, *others = Worked().each(STEP, [(1,), (low,), (exceptions.WorkerCrashedError(),)], [Needs()] * 3)
    assert (first, [type(one) for one in others]) == (1, [KilledError, CrashedError])
    assert "Task was killed due to the node running low on memory. State" in str(others[0])


def test_a_node_that_dies_is_no_fault_of_the_step() -> None:
    with pytest.raises(TransientError, match="Ray gave up: NodeDiedError: it is gone"):
        Worked().each(STEP, [(1,), (2,), (exceptions.NodeDiedError("it is gone"),)], [Needs()] * 3)
