"""The servers of `infra/loopback.py` as their clients meet them: for tests and benchmarks of production."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
SERVERS = CHECKOUT / ".servers" / "bin" / "python"

PATIENCE_SECONDS = 600.0
"""How long what must come is waited for: a bound for a busy machine, not a measurement."""
ON_DEMAND = "pipeline/on-demand"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class SetUp:
    """The running servers, and what a client's environment says of them."""

    folder: Path
    client: dict[str, str]
    process: "subprocess.Popen[str]"

    def kill(self, name: str, seconds: float) -> None:
        """Kill one of the processes; it is started again after so many seconds, while others go on."""
        assert self.process.stdin is not None
        print("kill", name, seconds, file=self.process.stdin, flush=True)

    def again(self) -> str:
        """Wait until what was killed is started again; which it was."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()[0]

    @property
    def secrets(self) -> dict[str, str]:
        """What may stand in no log and no artifact."""
        named = {name: self.client[name] for name in ("MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING")}
        user, _, password = named.pop("PREFECT_API_AUTH_STRING").partition(":")
        together = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {**named, "password": password, "header": together}

    def api(self, path: str, body: object = None, method: str | None = None) -> Any:
        """Prefect's REST API."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.authorization}
        request = urllib.request.Request(
            f"{self.client['PREFECT_API_URL']}/{path}", data, headers, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Basic {self.secrets['header']}"}

    def begin(self, config: Path, data_dir: Path, deployment: str = ON_DEMAND) -> str:
        """Start what the deployment makes of `config`; the id of the flow run."""
        parameters = {"config": str(config), "data_dir": str(data_dir)}
        found = self.api(f"deployments/name/{deployment}")["id"]
        run: str = self.api(f"deployments/{found}/create_flow_run", {"parameters": parameters})["id"]
        return run

    def ended(self, run: str) -> dict[str, Any]:
        """Wait until the worker has run it; its state. A server that is away is asked again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (state := self.state(run))["type"] not in ENDED:
            assert time.monotonic() < deadline, state
            time.sleep(0.5)
        return state

    def state(self, run: str) -> dict[str, Any]:
        """The state of a flow run; `unknown` while the server is away."""
        with suppress(OSError):
            state: dict[str, Any] = self.api(f"flow_runs/{run}")["state"]
            return state
        return {"type": "unknown"}

    def finish(self, config: Path, data_dir: Path, deployment: str = ON_DEMAND) -> str:
        """The same, and wait until the worker has run it well; the id of the flow run."""
        run = self.begin(config, data_dir, deployment)
        state = self.ended(run)
        assert state["type"] == "COMPLETED", f"{state}\n{(self.folder / 'worker.log').read_text()}"
        return run


@contextmanager
def up(folder: Path, *, worker: bool = True) -> Iterator[SetUp]:
    """Everything of `infra/loopback.py` in this new folder, or all but the worker."""
    command = [sys.executable, str(CHECKOUT / "infra" / "loopback.py"), str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command if worker else [*command, "--no-worker"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield SetUp(folder, json.loads(line), process)
        finally:
            process.stdin.close()
            process.wait(120)


@dataclass(frozen=True)
class Story:
    """Two runs of the worker, and where they left what they made."""

    servers: SetUp
    data_dir: Path
    runs: tuple[str, str]
    found: list[dict[str, str]]

    def pareflow(self, *arguments: str) -> Any:
        """The document that a command prints, as a client of the servers."""
        command = [sys.executable, "-m", "flows.cli", *arguments, "--data-dir", str(self.data_dir)]
        done = subprocess.run(
            command, cwd=CHECKOUT, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def python(self, code: str, *words: str) -> Any:
        """The document that a program prints, as a client of the servers; it is told the data folder."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, str(self.data_dir), *words],
            cwd=CHECKOUT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def reconcile(self, window_s: float) -> Any:
        """What `pareflow reconcile` did, whether it met problems or not."""
        return self._told("reconcile", "--window-s", str(window_s))

    def doctor(self, **environment: str) -> Any:
        """What `pareflow doctor` finds, whether it has something to mend or not."""
        return self._told("doctor", **environment)

    def _told(self, *words: str, **environment: str) -> Any:
        """The document of a command that exits with 4 where something is to be mended."""
        command = [sys.executable, "-m", "flows.cli", *words, "--json", "--data-dir", str(self.data_dir)]
        variables = {**self.environment, **environment}
        done = subprocess.run(
            command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode in (0, 4), done.stderr
        return json.loads(done.stdout)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.servers.client, "PYTHONPATH": str(CHECKOUT)}


@contextmanager
def serving(story: Story, **environment: str) -> Iterator[str]:
    """The champion, served; the server's URL."""
    command = [sys.executable, "-m", "flows.cli", "serve", "models:/digits@champion", "--port", "0"]
    command += ["--poll-s", "1", "--data-dir", str(story.data_dir)]
    variables, pipe = {**story.environment, **environment}, subprocess.PIPE
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=variables, stdout=pipe, stderr=pipe, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url, server.communicate()[1]
            yield url
        finally:
            server.terminate()
            server.communicate(timeout=60)


def answer(url: str) -> tuple[str, int]:
    """Which version answers one image of a digit, and how many predictions it gives."""
    image = {"name": "samples", "shape": [1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}/v2/models/digits/infer", json.dumps({"inputs": [image]}).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=30) as found:
        document = json.loads(found.read())
    outputs = {output["name"]: output for output in document["outputs"]}
    return document["model_version"], len(outputs["predictions"]["data"])
