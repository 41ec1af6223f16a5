"""Real servers on loopback for tests and benchmarks of triggers: Prefect, MLflow, a worker, the listener."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE_S = 300.0
"""How long is waited for what must come: a bound for a busy machine, not a measurement."""
SECRET = "a-secret-of-tests"
WEBHOOKS = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",  # MLflow calls neither http nor loopback unless told to
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_CACHE_TTL": "0",
}


def free_port() -> int:
    """A port of loopback where nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
    return port


def answers(url: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until somebody answers there."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """MLflow with its database and artifacts in a folder, its webhooks let loose; its URL."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": "", **WEBHOOKS}
    with process(command, folder / "mlflow.log", folder, **variables):
        answers(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"


def deploy() -> None:
    """Everything of prefect.yaml, on the server that PREFECT_API_URL names."""
    api = os.environ["PREFECT_API_URL"]
    types = f"{api}/collections/views/aggregate-worker-metadata"
    with urllib.request.urlopen(types, timeout=PATIENCE_S) as answer:
        template = json.load(answer)["prefect"]["process"]["default_base_job_configuration"]
    pool = json.dumps({"name": "pareflow", "type": "process", "base_job_template": template}).encode()
    asked = urllib.request.Request(f"{api}/work_pools/", pool, {"Content-Type": "application/json"})
    urllib.request.urlopen(asked, timeout=PATIENCE_S).close()
    prefect("deploy", "--all", PREFECT_DEFAULT_WORK_POOL_NAME="pareflow")


def prefect(*arguments: str, **variables: str) -> None:
    """Run Prefect's command line, from the folder of prefect.yaml."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def worker(folder: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process worker of the pool, which looks for runs every second."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "pareflow", "--type", "process"]
    settings = {"PREFECT_WORKER_QUERY_SECONDS": "1", **variables}
    with process(command, folder / "worker.log", folder, **settings) as started:
        yield started


@contextmanager
def listener(rules: Path, data_dir: Path, port: int, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`pareflow listen`, once it answers."""
    options = ["--rules", str(rules), "--data-dir", str(data_dir), "--port", str(port), "--verbose"]
    command = [sys.executable, "-m", "flows.cli", "listen", *options]
    settings = {"PAREFLOW_WEBHOOK_SECRET": SECRET, **variables}
    with process(command, data_dir.parent / "listener.log", ROOT, **settings) as started:
        answers(f"http://127.0.0.1:{port}/health")
        yield started


@contextmanager
def process(
    command: list[str], log: Path, folder: Path, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is told to end at the end, and is waited for."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            stdout=output,
            stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which workers send themselves
        )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(60)
