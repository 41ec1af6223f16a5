"""What orchestration and tracking add to the bare stages, for the same work, in one run of this script."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from claims import Claim, main, of_turns

from pareflow import spec
from pareflow.errors import PareflowError
from pareflow.stages import baseline, finalists, optimization, profiling, registration, searching, validation
from pareflow.stages.run import Run

CANDIDATES = """
candidates:
  - [{static_int8: {}}, {onnxruntime: {}}]
  - [{dynamic_int8: {}}, {onnxruntime: {}}]
  - [{fp16: {}}, {onnxruntime: {}}]
  - [{onnxruntime: {graph_level: none}}]
"""
VARIANTS = 6
"""Four candidates and the two baselines."""


def bare(config: Path, data_dir: Path) -> None:
    """The stages one after the other: no Prefect, no MLflow."""
    run = Run.open(spec.read(config), config, data_dir)
    baselines = baseline.baseline(run)
    profiling.profile(run, baselines)
    rows = [optimization.make(run, row) for row in searching.first_rows(run, baselines)]
    rows = [optimization.time(run, row, baselines) for row in rows]
    judged = validation.validate(run, finalists.finalists(run, [*baselines, *rows]))
    winner = validation.winner(run, judged)
    if winner is not None:
        registration.package(run, winner)


def measure(quick: bool) -> Sequence[Claim]:
    """Bare stages, then the command on a fresh data folder, then again with other work; in turns."""
    rounds = [one_round() for _ in range(1 if quick else 5)]
    first = [flow - bare_s for bare_s, flow, _ in rounds]
    later = [again - bare_s for bare_s, _, again in rounds]
    ratios = [again / bare_s for bare_s, _, again in rounds]
    note = f"ratio of whole times, later run: {np.median(ratios):.2f}"
    return [
        of_turns("orchestration and tracking, first time", 18 + 0.5 * VARIANTS, first, "s", "at most", note),
        of_turns("orchestration and tracking, later", 8 + 0.5 * VARIANTS, later, "s", "at most", note),
    ]


def one_round() -> tuple[float, float, float]:
    """Seconds of the bare stages, of the command on a new data folder, and there again on other work."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        configs = [workload(root, seed) for seed in (0, 1, 2)]
        bare_s = timed([sys.executable, __file__, "bare", str(configs[0]), str(root / "bare")])
        command = ["-m", "flows.cli", "optimize", "--data-dir", str(root / "flow")]
        first = timed([sys.executable, *command, str(configs[1])])
        again = timed([sys.executable, *command, str(configs[2])])
        return bare_s, first, again


def workload(root: Path, seed: int) -> Path:
    """The workload that `pareflow init` writes, with few candidates and this seed."""
    name = f"iris{seed}"
    subprocess.run(
        [sys.executable, "-m", "flows.cli", "init", name], cwd=root, check=True, stdout=subprocess.DEVNULL
    )
    config = root / name / "pipeline.yaml"
    text = config.read_text().replace("threads: [1, 2]", "threads: [1]") + CANDIDATES
    settings = json.dumps({"file": {"path": "workload.py", "settings": {"seed": seed}}})
    config.write_text(text.replace("workload: workload.py", f"workload: {settings}"))
    return config


def timed(command: list[str]) -> float:
    """Seconds that a command takes. Raises: PareflowError unless it met the SLA, or said that nothing did."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise PareflowError("the measured command must end well", done.stderr[-2000:], "Run it by hand")
    return time.monotonic() - began


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        shutil.rmtree(sys.argv[3], ignore_errors=True)
        bare(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main("overhead of orchestration and tracking", measure)
