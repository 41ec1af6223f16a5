"""The steps of `infra/Dockerfile`, carried out in a folder without an engine: they make what serves."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.production]
PATHS = ("/opt/venv", "/opt/pareflow")
"""What an image has that a folder stands for."""


def steps(dockerfile: Path, stage: str) -> list[str]:
    """The instructions of a stage, after those of the stages that it stands on."""
    found, current = dict[str, list[str]](), ""
    for line in re.sub(r"\\\n\s*", "", dockerfile.read_text()).splitlines():
        if begun := re.match(r"FROM (\S+) AS (\S+)", line):
            current = begun[2]
            found[current] = list(found.get(begun[1], []))
        elif current and line and not line.startswith("#"):
            found[current].append(line)
    return found[stage]


def built(checkout: Path, stage: str, root: Path, **arguments: str) -> Path:
    """Do what a stage says, below `root`, with these build arguments; its environment.

    Only what it copies is there.
    """
    folder = root / "opt" / "pareflow"
    folder.mkdir(parents=True)
    given = dict[str, str]()
    for line in steps(checkout / "infra" / "Dockerfile", stage):
        verb, _, rest = line.partition(" ")
        if verb == "COPY":
            *sources, target = rest.split()
            for source in sources:
                into = folder / target
                if (checkout / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(checkout / source, into, dirs_exist_ok=True, ignore=ignored)
                else:
                    shutil.copy(checkout / source, into)
        elif verb == "ARG":
            name, _, default = rest.partition("=")
            given[name] = arguments.get(name, default.strip('"'))
        elif verb == "RUN":
            for path in PATHS:
                rest = rest.replace(path, f"{root}{path}")
            rest = rest.replace("python -m venv", f"{sys.executable} -m venv")
            alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            alone |= given
            done = subprocess.run(
                ["sh", "-euc", rest], cwd=folder, env=alone, capture_output=True, text=True, timeout=500
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root / "opt" / "venv"


def test_what_the_image_serving_holds_serves_a_model(
    checkout: Path, packaged: Callable[..., Path], tmp_path: Path
) -> None:
    environment = built(checkout, "build-serving", tmp_path, DISTRIBUTIONS="redis")
    assert list(environment.glob("lib/*/site-packages/redis")), "a build argument adds to it"
    assert not list(environment.glob("lib/*/site-packages/torch")), "the image is to be small"
    command = [str(environment / "bin" / "pareflow"), "serve", str(packaged("images")), "--port", "0"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=alone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url, server.communicate()[1]
            image = {"name": "samples", "shape": [1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
            request = urllib.request.Request(
                f"{url}/v2/models/images/infer", json.dumps({"inputs": [image]}).encode()
            )
            request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=30) as answer:
                outputs = {output["name"] for output in json.loads(answer.read())["outputs"]}
        finally:
            server.terminate()
            server.communicate(timeout=60)
    assert "predictions" in outputs


def test_what_the_image_server_holds_are_both_servers_and_their_drivers(
    checkout: Path, tmp_path: Path
) -> None:
    environment = built(checkout, "build-server", tmp_path)
    code = "import asyncpg, boto3, flask_wtf, mlflow.server.auth, prefect.server, psycopg, prefect_kubernetes"
    done = subprocess.run(
        [str(environment / "bin" / "python"), "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
