"""A plan that is being tried: its server lives no longer than who asked for it, and why it ended is told."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pareflow.errors import InputError
from pareflow.isolation import Limits, run_isolated
from pareflow.serving.plan import ServingPlan

ASK = """
import json, sys
from pathlib import Path
from pareflow.isolation import Limits, run_isolated
arguments = json.loads(Path(sys.argv[1]).read_text())
run_isolated("pareflow.serving.plan_under_load:answer", arguments, Limits(), Path(sys.argv[1] + ".log"))
"""
PATIENCE_S = 60.0


@pytest.fixture
def arguments(packaged: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    """Ten minutes of requests, of one image each."""
    image = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
    return {
        "folder": str(packaged("images")),
        "plan": ServingPlan().model_dump(mode="json"),
        "load": {"scenario": "Server", "per_s": 50, "limit_ms": 1000, "queries": 30_000},
        "requests": [[image]],
        "service_s": 0.001,
        "limits": {"seconds": 600},
        "log": str(tmp_path / "server.log"),
    }


def servers(of: psutil.Process) -> list[psutil.Process]:
    """Those of the processes below it that listen."""
    found = []
    for process in of.children(recursive=True):
        with suppress(psutil.Error):
            if any(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp")):
                found.append(process)
    return found


@pytest.fixture
def asking(
    arguments: dict[str, Any], tmp_path: Path, checkout: Path
) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """A command that tries a plan, and the server that it has started."""
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps(arguments))
    command = subprocess.Popen([sys.executable, "-c", ASK, str(path)], cwd=checkout)
    deadline = time.monotonic() + PATIENCE_S
    while not (found := servers(psutil.Process(command.pid))):
        assert command.poll() is None, (tmp_path / "server.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield command, found[0]
    command.kill()
    command.wait()


def test_a_server_dies_with_the_command_that_is_killed(
    asking: tuple[subprocess.Popen[bytes], psutil.Process],
) -> None:
    command, server = asking
    command.kill()
    command.wait()
    psutil.wait_procs([server], timeout=20)
    assert not server.is_running()


def test_a_server_that_cannot_start_says_why(arguments: dict[str, Any], tmp_path: Path) -> None:
    damaged = {**arguments, "plan": {**arguments["plan"], "tiers": {"small": str(tmp_path / "nowhere")}}}
    with pytest.raises(InputError, match="nowhere must hold a whole pareflow package"):
        run_isolated("pareflow.serving.plan_under_load:answer", damaged, Limits(), tmp_path / "log")
