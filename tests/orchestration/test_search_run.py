"""A run that searches: killed while it trains, it goes on where it was, and ends with what was finished.
Stopped by Ctrl-C, it judges and registers the best so far."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tests.orchestration.test_resume import assert_recorded_once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]  # it trains a dozen networks, on a budget of minutes
MINUTES = 3.0
PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def killed_and_finished(
    command: Callable[..., list[str]],
    entries: Callable[[Path], dict[str, tuple[int, int]]],
    pipeline_file: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Path]:
    """The entries at a kill in the midst of training, those at the end, the document, the data folder."""
    budget = {"minutes": MINUTES, "variant_minutes": 5, "quiet_minutes": 30}
    config = pipeline_file("searched", candidates=None, budget=budget)
    data_dir = tmp_path_factory.mktemp("searched") / "data"
    words = command("optimize", config, "--data-dir", data_dir, "--json")
    process = subprocess.Popen(words, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    unfinished, deadline = data_dir / "store" / "unfinished", time.monotonic() + PATIENCE_S
    while not (unfinished.exists() and any(unfinished.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its children die with it
    before = entries(data_dir)
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return before, entries(data_dir), json.loads(done.stdout), data_dir


def test_what_was_finished_before_the_kill_is_not_made_again(killed_and_finished: Any) -> None:
    before, after, _, _ = killed_and_finished
    assert len(before) > 10
    assert before.items() <= after.items()


def test_the_search_trained_and_says_why_it_ended_and_of_every_row_what_became_of_it(
    killed_and_finished: Any,
) -> None:
    _, _, document, data_dir = killed_and_finished
    recipes = [row["recipe"] for row in document["variants"]]
    assert any("channel_pruning(" in recipe for recipe in recipes)
    assert document["search"]["ended"]
    assert len(document["explanations"]) == len(recipes)
    assert all(document["explanations"])
    assert document["winner"] is not None
    assert [step["step"] for step in document["contributions"]]
    assert (data_dir / "runs" / document["run_id"] / "study.log").is_file()


def test_the_study_the_store_and_mlflow_agree_after_a_kill(killed_and_finished: Any) -> None:
    """What the study was told of, each recipe once, is a row; each row an entry, and one run of MLflow's."""
    _, after, document, data_dir = killed_and_finished
    rows = document["variants"]
    assert_recorded_once(data_dir, rows)
    made = [row for row in rows if row["status"] == "ok" and row["role"] == "candidate"]
    assert {row["id"] for row in made} <= after.keys()
    log = JournalFileBackend(str(data_dir / "runs" / document["run_id"] / "study.log"))
    study = optuna.load_study(study_name="search", storage=JournalStorage(log))
    told = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len({str(sorted(trial.params.items())) for trial in told}) == len(told) > 0
    size = document["baseline"]["size_mib"]
    found = {(next(iter(row["steps"][0])), round(row["size_mib"] / size, 6)) for row in made}
    assert {(trial.params["technique"], round(trial.values[0], 6)) for trial in told} <= found


def test_ctrl_c_in_the_search_registers_the_best_so_far_and_the_same_command_goes_on(
    command: Callable[..., list[str]], pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Under Prefect; the terminal tells the whole process group."""
    budget = {"minutes": MINUTES, "variant_minutes": 5, "quiet_minutes": 30}
    config = pipeline_file("stopped", candidates=None, budget=budget)
    words = command("optimize", config, "--data-dir", tmp_path / "data", "--json")
    process = subprocess.Popen(
        words,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else it ignores what we ignore
    )
    assert process.stderr is not None
    said = next(line for line in iter(process.stderr.readline, "") if "static_int8" in line)
    os.killpg(process.pid, signal.SIGINT)
    printed, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, (said, told)
    stopped = json.loads(printed)
    assert stopped["search"]["ended"] == "it was stopped; the same command goes on with it"
    assert stopped["registered"] is not None
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["run_id"] == stopped["run_id"]
    assert len(document["variants"]) > len(stopped["variants"])
