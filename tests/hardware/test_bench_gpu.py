"""`bench/gpu.py` where there is no device, and what of it needs none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pareflow.hardware import accelerators

SPARED = ["prefect", "mlflow", "onnxruntime", "openvino", "scipy", "sklearn", "evaluate", "datasets", "yaml"]


@pytest.mark.skipif(accelerators.device() is not None, reason="there is a CUDA device")
def test_without_a_device_every_row_says_so(checkout: Path) -> None:
    command = [sys.executable, "bench/gpu.py", "--quick", "--json"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert len(rows) >= 10
    assert {row["note"] for row in rows} == {"not measured: there is no CUDA device"}
    assert all(row["measured"] is None and row["met"] is None and row["claimed"] > 0 for row in rows)
    claimed = {row["name"]: row["claimed"] for row in rows}
    assert claimed["tensor cores, products of 4096: float16"] == 2
    assert claimed["CUDA graphs, small network ×1"] == 1.5
    assert claimed["utilisation at the best batch, resnet18 in fp16"] == 0.8


def test_it_needs_the_core_library_alone(checkout: Path) -> None:
    """What a box with a device has: torch; and four small packages."""
    code = (
        "import sys; sys.path[:0] = ['.', 'bench']; import gpu\n"
        "gpu.measure(True)\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        f"print(names & set({SPARED}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
