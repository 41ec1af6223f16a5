"""What other tools make of a pipeline's original: scripts of `peer_tools/`, in environments of their own.

A script is handed files (`peer_tools/job.py`) and knows nothing of pareflow. What it made is in the store.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flows.environment import set_environment
from pareflow import network
from pareflow.compiler.backend import Backend
from pareflow.compiler.environment import WorkerEnvironment, last_lines
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.compiler.openvino import OpenVino
from pareflow.errors import MissingExtraError, StepFailedError, VariantError
from pareflow.hardware import probe
from pareflow.hardware.device import device_lock
from pareflow.isolation import Limits, run_isolated
from pareflow.measuring.arena import write_feeds
from pareflow.stages.jobs import artifact_size_mib
from pareflow.stages.optimization import failed
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, digest, file_digest
from pareflow.workload import load

FOLDER = Path(__file__).parent / "peer_tools"
LIMITS = Limits(seconds=15 * 60)


class PeerEnvironment(WorkerEnvironment):
    """A worker environment whose lock file lies in `peer_tools/`."""

    @property
    def lock(self) -> Path:
        return FOLDER / f"{self.name}.txt"


@dataclass(frozen=True)
class Peer:
    """A tool as its users run it: its script, its environment, and the runtime that they would serve with."""

    name: str
    script: str
    environment: str
    backend: type[Backend] = OnnxRuntime

    def key(self, run: Run, strong: Row) -> str:
        """Names the file by all that it depends on; presets depend on the processor."""
        sources = [file_digest(path) for path in sorted(FOLDER.glob("*.py"))]
        environment = PeerEnvironment(self.environment).digest
        machine = run.environment.fingerprint
        ran = (self.backend.code_version(), self.runtime(strong).step.to_json())
        given = (strong.id, _max_drop(run))
        return digest("peer", self.script, given, sources, environment, ran, machine)

    def runtime(self, strong: Row) -> Backend:
        """Its runtime as its users get it, in as many threads as the baseline.

        The precision that OpenVINO chooses by itself is bf16 where the processor has it.
        """
        if self.backend is OpenVino and probe.has_bf16():
            return OpenVino(threads=strong.threads, precision="bf16")
        return self.backend(threads=strong.threads)


PEERS = (
    Peer("ORT quantize_static", "ort_static", "ort"),
    Peer("ORT quantize_dynamic", "ort_dynamic", "ort"),
    Peer("Optimum CLI", "optimum_cli", "optimum"),
    Peer("NNCF quantize", "nncf_plain", "nncf", OpenVino),
    Peer("NNCF accuracy control", "nncf_accuracy_control", "nncf", OpenVino),
    Peer("Olive API", "olive_api", "olive"),
)
QUICK = tuple(peer for peer in PEERS if peer.environment == "ort")


def make(run: Run, peer: Peer, strong: Row) -> Row:
    """The peer's variant of the original as a row of the run, not yet judged; or failed, with its reason."""
    recipe = Recipe((), peer.runtime(strong).step)
    row = Row(recipe, id=peer.key(run, strong))
    try:
        python = PeerEnvironment(peer.environment).ensure()
        with device_lock(run.spec.target.device, exclusive=False):
            made = run.store.ensure(str(row.id), lambda into: _write(run, peer, python, strong, into))
    except (VariantError, MissingExtraError) as error:
        return failed(row, error)
    return replace(row, size_mib=artifact_size_mib(made))


def _write(run: Run, peer: Peer, python: Path, strong: Row, into: Path) -> None:
    """Run the script in a scratch folder, and compile what it left."""
    source, inputs = run.store.find(str(strong.id)), _inputs(run)
    assert source is not None  # the pipeline has just run
    with tempfile.TemporaryDirectory(dir=run.data_dir) as scratch:
        output = Path(scratch) / "output"
        output.mkdir()
        files = (source / "model.onnx", inputs / "calibration.npz", inputs / "validation.npz", output)
        script = FOLDER / f"{peer.script}.py"
        _call([python, "-Es", script, *files, str(_max_drop(run))], scratch, _log(run, peer))
        if not (output / network.FILES[peer.backend.form]).is_file():
            raise StepFailedError(
                "a peer must leave its file", "it ended well without one", f"See {_log(run, peer)}"
            )
        peer.backend().compile(output, into)


def _call(command: list[str | Path], folder: str, log: Path) -> None:
    """Run a command within the limits. Raises: VariantError that tells its last words."""
    arguments = {"args": [*map(str, command)], "cwd": folder, "env": environment()}
    status = run_isolated("subprocess:call", arguments, LIMITS, log)
    if status != 0:
        words = last_lines(log.read_text(errors="replace"), 1)
        raise StepFailedError("a peer must leave its file", f"it says: {words}", f"See {log}")


def environment() -> dict[str, str]:
    """This process's, without pareflow's modules, and with neither telemetry nor a hub."""
    set_environment()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}


def _max_drop(run: Run) -> float:
    """What the SLA lets be lost: no limit is a limit of everything."""
    clause = run.spec.sla.quality
    return 1.0 if clause is None or clause.max_drop is None else clause.max_drop


def _log(run: Run, peer: Peer) -> Path:
    return run.data_dir / "logs" / f"peer-{run.spec.name}-{peer.script}.log"


def _inputs(run: Run) -> Path:
    """The folder of what peers may see: calibration inputs, and the search split with its labels (law 5)."""

    def write(into: Path) -> None:
        workload = load(run.spec.workload, run.folder)
        labels = workload.split("search").labels()
        write_feeds(list(workload.feeds("calibration", 1)), into / "calibration.npz")
        samples = enumerate(workload.feeds("search", 1))
        arrays = {f"{i}/{name}": array for i, batch in samples for name, array in batch.items()}
        np.savez(into / "validation.npz", labels=labels, **arrays)  # type: ignore[arg-type]

    return run.store.ensure(digest("peer inputs", run.facts.digest), write)
