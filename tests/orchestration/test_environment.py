"""What `set_environment` sets reaches those it is meant for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def printed(script: str, **environment: str) -> str:
    """What `script` prints in a new process whose environment says nothing but where to find programs."""
    command = [sys.executable, "-c", f"from flows.environment import set_environment\n{script}"]
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(
        command, cwd=ROOT, env=bare | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_mlflow_sends_no_telemetry() -> None:
    script = "set_environment()\nfrom mlflow.telemetry.utils import is_telemetry_disabled\n"
    assert printed(script + "print(is_telemetry_disabled())") == "True"


def test_openvino_sends_no_telemetry() -> None:
    pytest.importorskip("openvino_telemetry")
    script = (
        "set_environment()\nfrom openvino_telemetry.utils.opt_in_checker import OptInChecker\n"
        "print(OptInChecker().check(enable_opt_in_dialog=False, disable_in_ci=True).name)"
    )
    assert printed(script) == "DECLINED"


def test_nncf_sends_no_telemetry() -> None:
    pytest.importorskip("nncf")
    script = "set_environment()\nfrom nncf.telemetry import wrapper\nprint(type(wrapper.telemetry).__name__)"
    assert printed(script) == "MagicMock"


def test_prefect_starts_no_ephemeral_server(tmp_path: Path) -> None:
    script = (
        "set_environment()\nfrom prefect.client.orchestration import get_client\n"
        "try:\n    get_client()\nexcept ValueError as error:\n    print(error)"
    )
    assert "No Prefect API URL provided" in printed(script, PREFECT_HOME=str(tmp_path))


@pytest.mark.parametrize(("verbose", "shown"), [(False, False), (True, True)])
def test_prefect_logs_only_where_the_command_says_so(tmp_path: Path, verbose: bool, shown: bool) -> None:
    """A flow's module sets the environment, too, and does not know."""
    script = (
        f"set_environment({verbose})\nset_environment()\nimport sys\nsys.stderr = sys.stdout\n"
        "from prefect import flow\nfrom prefect.logging import get_logger\nget_logger('x').error('a word')"
    )
    assert ("a word" in printed(script, PREFECT_HOME=str(tmp_path))) == shown


def test_what_the_user_has_set_stands() -> None:
    script = "set_environment()\nimport os\nprint(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    assert printed(script, MLFLOW_DISABLE_TELEMETRY="false") == "false"
