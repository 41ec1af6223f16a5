"""A registry of a team's year, and retraining on servers beside the embedded one.

It needs what `make servers` installs. `registry`: 1,000 versions and 10,000 variant runs, in the embedded
SQLite and behind MLflow on PostgreSQL with passwords. `retraining`: the same work by a worker, on
loopback.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from claims import Claim, main, of_turns

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `tests/production.py`, which no package holds

from pareflow import spec  # noqa: E402
from tests.production import SERVERS, up  # noqa: E402

VERSIONS, RUNS = 1000, 10_000
LIMIT_S = 2.0
RATIO = 1.3
PROMOTE = """
import json, statistics, sys, tempfile, time
from pathlib import Path
from flows.environment import set_environment
set_environment()
from pareflow import spec
from pareflow.stages import promotion as stage
from pareflow.stages.run import Run
from tasks.promotion import promote
from tasks.tracking import Tracker

config, data_dir, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tracker = Tracker.open(data_dir)
run = Run.open(spec.read(config), config, data_dir)
first = tracker.alias(run.spec.name, "champion")
second = tracker.client.create_model_version(first.name, first.source, run_id=first.run_id, tags=first.tags)
with tempfile.TemporaryDirectory() as folder:
    row = stage.packaged_row(run, tracker.download(first.name, str(first.version), Path(folder)))
seconds = []
for turn in range(times):
    began = time.perf_counter()
    moved = promote(tracker, run, str((second, first)[turn % 2].version), row)
    seconds.append(time.perf_counter() - began)
    assert moved.alias == "champion", moved
print(json.dumps(seconds))
"""


def registry(quick: bool) -> Iterator[Claim]:
    """Listing as a command, and promotion as the protocol: download, verify, two aliases, read back."""
    if not SERVERS.exists():
        yield _unmeasured("pareflow list, promotion, rollback", LIMIT_S, "s")
        return
    count = 20 if quick else 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = by_size(root, 0)
        yield from _filled(root / "embedded", config, {}, None, count, "SQLite")
        with up(root / "servers", worker=False) as servers:
            client = servers.client
            url = (root / "servers" / "postgresql.url").read_text()
            yield from _filled(root / "data", config, client, f"{url}/mlflow", count, "PostgreSQL")


def by_size(root: Path, seed: int) -> Path:
    """The digits with three candidates; the winner is the smallest file, which has no noise."""
    folder, left_out = root / "digits", shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "configs" / "digits", folder, ignore=left_out, dirs_exist_ok=True)
    pipeline = {
        **spec.read(folder / "pipeline.yaml").to_json(),
        "workload": {"file": {"path": "workload.py", "settings": {"seed": seed}}},
        "objective": "size",
        "candidates": [[name, "onnxruntime"] for name in ("static_int8", "dynamic_int8", "fp16")],
    }
    config = folder / "pipeline.yaml"
    config.write_text(json.dumps(pipeline))  # JSON is YAML
    return config


def _filled(
    data_dir: Path, config: Path, client: Mapping[str, str], url: str | None, fewer: int, name: str
) -> Iterator[Claim]:
    versions, runs, times = VERSIONS // fewer, RUNS // fewer, 3 if fewer > 1 else 7
    _pareflow(client, "optimize", str(config), "--data-dir", str(data_dir), "--no-orchestrator", "--json")
    _pareflow(client, "promote", str(config), "--data-dir", str(data_dir), "--json")
    database = url or f"sqlite:///{data_dir.resolve() / 'mlflow' / 'mlflow.db'}"
    rows = [str(SERVERS), str(ROOT / "bench" / "registry_rows.py"), database, str(versions), str(runs)]
    subprocess.run(rows, check=True)
    note = f"{versions:,} versions, {runs:,} runs; the whole command, with its imports"
    listed = ["list", "versions", "--data-dir", str(data_dir), "--json"]
    assert len(_pareflow(client, *listed)) == versions + 1
    seconds = _timed(lambda: _pareflow(client, *listed), times)
    yield of_turns(f"pareflow list versions, {name}", LIMIT_S, seconds, "s", "at most", note)
    command = [sys.executable, "-W", "ignore", "-c", PROMOTE, str(config), str(data_dir), str(times)]
    promoted = json.loads(_printed(client, command).splitlines()[-1])
    note = "download, digests, golden outputs elsewhere, aliases; equal content is not timed again"
    yield of_turns(f"promotion, {name}", LIMIT_S, promoted, "s", "at most", note)
    rolled = ["rollback", spec.read(config).name, "--data-dir", str(data_dir)]
    seconds = _timed(lambda: _pareflow(client, *rolled, "--json"), times)
    note = "the whole command; a server's poll comes to it"
    yield of_turns(f"pareflow rollback, {name}", 5, seconds, "s", "at most", note)


def retraining(quick: bool) -> Iterator[Claim]:
    """From training to the promotion, beside a champion: a flow run by a worker, and the command with its
    embedded servers, in turns; each turn trains from another seed."""
    name = "retraining on servers, of the embedded one"
    if not SERVERS.exists():
        yield _unmeasured(name, RATIO, "×")
        return
    ratios = list[float]()
    took = list[tuple[float, float]]()
    with tempfile.TemporaryDirectory() as folder, up(Path(folder) / "servers") as servers:
        root = Path(folder)
        config, there = by_size(root, 0), root / "there"
        here = [str(config), "--data-dir", str(root / "here"), "--json"]
        servers.finish(config, there)  # a champion on both sides
        _pareflow({}, "optimize", *here)
        for turn in range(1, 2 if quick else 6):
            by_size(root, turn)
            on_servers = _timed(partial(servers.finish, config, there, "retraining/daily"), 1)[0]
            embedded = _timed(partial(_pareflow, {}, "retrain", *here), 1)[0]
            took.append((on_servers, embedded))
            ratios.append(on_servers / embedded)
    note = "; ".join(f"{server:.0f} s by a worker, {alone:.0f} s embedded" for server, alone in took)
    yield of_turns(name, RATIO, ratios, "×", "at most", note)


def _pareflow(client: Mapping[str, str], *arguments: str) -> Any:
    return json.loads(_printed(client, [sys.executable, "-m", "flows.cli", *arguments]))


def _printed(client: Mapping[str, str], command: Sequence[str]) -> str:
    env = _environment(client)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} must succeed, but it said: {done.stderr}")
    return done.stdout


def _environment(client: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **client, "PYTHONPATH": str(ROOT)}


def _timed(do: Callable[[], object], times: int) -> list[float]:
    found = list[float]()
    for _ in range(times):
        began = time.perf_counter()
        do()
        found.append(time.perf_counter() - began)
    return found


def _unmeasured(name: str, claimed: float, unit: str) -> Claim:
    return Claim(name, claimed, None, unit, 0, "at most", note="needs what `make servers` installs")


if __name__ == "__main__":
    main("production", {"registry": registry, "retraining": retraining})
