"""`pareflow tune`: plans are simulated, served for real, and taken only where LoadGen's numbers tell."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml

from pareflow.serving.plan import read

Done = subprocess.CompletedProcess[str]


def test_a_promise_that_is_easily_kept_gives_a_plan_to_serve_with(
    pareflow_command: Callable[..., Done], packaged: Callable[..., Path], tmp_path: Path
) -> None:
    to = tmp_path / "plan.yaml"
    options = [
        "--per-s",
        100,
        "--p99-ms",
        2000,
        "--queries",
        300,
        "--to",
        to,
        "--data-dir",
        tmp_path,
        "--json",
    ]
    done = pareflow_command("tune", packaged("images"), *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    best, *others = document["tried"]
    assert best["decision"] == "promote"
    assert best["p99"]["high"] <= 2000
    assert {row["decision"] for row in others} >= {"left out"}
    assert yaml.safe_load(to.read_text()) == document["plan"]
    assert read(to).sessions == best["plan"]["sessions"]


def test_a_promise_that_nothing_keeps_gives_none(
    pareflow_command: Callable[..., Done], packaged: Callable[..., Path], tmp_path: Path
) -> None:
    options = ["--per-s", 100, "--p99-ms", 0.01, "--queries", 300, "--to", tmp_path / "plan.yaml"]
    done = pareflow_command("tune", packaged("images"), *options, "--data-dir", tmp_path)
    assert done.returncode == 3, done.stderr
    assert "no plan keeps it" in done.stdout
    assert not (tmp_path / "plan.yaml").exists()
