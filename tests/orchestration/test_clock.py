"""The machine's clock is set while a run goes on: nothing is cut short, lost or done twice."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.tracking import KEY, Tracker
from tests.orchestration.conftest import CHECKOUT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning"),  # MLflow's queries
    pytest.mark.timeout(900),
]
PATIENCE_SECONDS = 400.0


@pytest.fixture(scope="module")
def faketime() -> Path:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed: `make servers`")
    return found[0]


@pytest.mark.parametrize("jump", ["+2d", "-2d"])
def test_a_run_whose_clock_is_set_ends_as_any(
    jump: str,
    faketime: Path,
    pipeline_file: Callable[..., Path],
    command: Callable[..., list[str]],
    entries: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    """By two days, where the budget is an hour, amid the run; asked again, nothing is made anew."""
    config = pipeline_file()
    data_dir, clock = tmp_path / "data", tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "LD_PRELOAD": str(faketime),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    words = command("optimize", config, "--data-dir", data_dir, "--json")
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(words, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=said) as run,
    ):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(entries(data_dir)) < 3:
            assert run.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        clock.write_text(jump)
        printed, _ = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 0, (tmp_path / "said").read_text()
    document: dict[str, Any] = json.loads(printed)
    assert {variant["status"] for variant in document["variants"]} == {"ok"}
    assert document["registered"]["alias"] == "champion"
    finished = entries(data_dir)
    environment.pop("LD_PRELOAD")
    again = subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=540)
    assert json.loads(again.stdout)["winner"] == document["winner"]
    assert entries(data_dir) == finished
    tracker = Tracker.open(data_dir)
    experiment = tracker.client.get_experiment_by_name("images")
    assert experiment is not None
    keys = [run.data.tags[KEY] for run in tracker.client.search_runs([experiment.experiment_id])]
    assert len(keys) == len(set(keys)) == 1 + len(document["variants"])
