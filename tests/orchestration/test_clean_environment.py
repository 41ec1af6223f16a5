"""The registered model in an environment that holds only its own requirements, away from this checkout."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tasks.tracking import Tracker
from tests.orchestration.conftest import CHECKOUT, Finished

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
PATIENCE_SECONDS = 300.0
PREDICT = """
import json, sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
predictions = model.predict(np.asarray(json.load(sys.stdin), dtype=np.float32)).tolist()
import pareflow
print(json.dumps({"predictions": predictions, "code": pareflow.__file__, "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def model(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The champion as the registry gives it: an MLflow model in a folder of its own."""
    tracker, folder = Tracker.open(finished.data_dir), tmp_path_factory.mktemp("registry")
    uri = tracker.client.get_model_version_download_uri("images", "1")
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=tracker.uri))


@pytest.fixture(scope="module")
def golden(model: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((model / "data" / "package" / "golden.json").read_text())
    return document


@pytest.fixture(scope="module")
def python(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment: the model's pinned requirements, and what they themselves need."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [
        *(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *(
            "--constraint",
            str(CHECKOUT / "requirements.lock"),
            "--requirement",
            str(model / "requirements.txt"),
        ),
    ]
    subprocess.run(install, check=True)
    return folder / "bin" / "python"


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, Any]:
    """How to run something away from this checkout."""
    kept = {name: os.environ[name] for name in ("HOME", "LD_LIBRARY_PATH") if name in os.environ}
    return {"cwd": tmp_path, "env": {**kept, "PATH": "/usr/bin:/bin", "MLFLOW_DISABLE_TELEMETRY": "true"}}


def test_every_requirement_is_pinned(model: Path) -> None:
    lines = (model / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if "==" not in line] == []
    assert not any(line.startswith(("torch", "prefect")) for line in lines)


def test_it_predicts_what_it_predicted(
    python: Path, model: Path, golden: dict[str, Any], alone: dict[str, Any]
) -> None:
    done = subprocess.run(
        [str(python), "-c", PREDICT, str(model)],
        input=json.dumps(golden["samples"]),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
        **alone,
    )
    answer = json.loads(done.stdout)
    assert answer["predictions"] == golden["predictions"]
    assert Path(answer["code"]).is_relative_to(model)
    assert not answer["torch"]


def test_mlflow_serves_it(
    python: Path, model: Path, golden: dict[str, Any], alone: dict[str, Any], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    words = ["-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    log = tmp_path / "serve.log"
    alone["env"]["PATH"] = f"{python.parent}:{alone['env']['PATH']}"  # MLflow starts `uvicorn` by name
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), *words, "-h", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=output,
            start_new_session=True,
            **alone,
        )
    try:
        answer = _asked(f"http://127.0.0.1:{port}/invocations", {"inputs": golden["samples"]}, process, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert answer["predictions"] == golden["predictions"]


def _asked(url: str, body: object, process: "subprocess.Popen[bytes]", log: Path) -> Any:
    """The server's answer, once it is there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(error.read().decode())
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
