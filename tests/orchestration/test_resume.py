"""Law 6: nothing finished is redone, nothing finished is lost; whenever it is killed, whatever is damaged."""

import json
import signal
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.tracking import KEY, Tracker

pytestmark = [
    pytest.mark.slow,  # five minutes: three kills, a damaged store, two runs at once
    pytest.mark.timeout(900),
]
KILLED_AT = (2, 7, 12)
"""After so many entries the command is killed: while it builds, while it times, while it judges."""
PATIENCE_SECONDS = 400.0
Entries = Callable[[Path], dict[str, tuple[int, int]]]
Start = Callable[[Path, Path], "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def start(command: Callable[..., list[str]]) -> Start:
    """Start `pareflow optimize`; its words go to files in the data folder's parent."""

    def started(config: Path, data_dir: Path) -> "subprocess.Popen[bytes]":
        words = command("optimize", config, "--data-dir", data_dir, "--json")
        with (
            (data_dir.parent / "out.json").open("wb") as out,
            (data_dir.parent / "err.txt").open("wb") as err,
        ):
            return subprocess.Popen(words, cwd=Path(__file__).parents[2], stdout=out, stderr=err)

    return started


@pytest.fixture(scope="module")
def resumed(
    start: Start,
    entries: Entries,
    pipeline_file: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, list[dict[str, tuple[int, int]]]]:
    """A pipeline, its data folder after it was killed thrice and then finished, the entries at each end."""
    config, data_dir = pipeline_file(), tmp_path_factory.mktemp("killed") / "data"
    ends = []
    for count in KILLED_AT:
        process = start(config, data_dir)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(entries(data_dir)) < count:
            assert process.poll() is None, (data_dir.parent / "err.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)  # its children die with it
        ends.append(entries(data_dir))
    assert start(config, data_dir).wait(PATIENCE_SECONDS) == 0, (data_dir.parent / "err.txt").read_text()
    return config, data_dir, [*ends, entries(data_dir)]


def test_a_killed_run_is_finished_by_the_same_command(resumed: tuple[Path, Path, Any]) -> None:
    _, data_dir, _ = resumed
    document = json.loads((data_dir.parent / "out.json").read_text())
    assert document["registered"]["alias"] == "champion"
    assert {variant["status"] for variant in document["variants"]} == {"ok"}


def test_what_was_finished_before_a_kill_is_not_made_again(
    resumed: tuple[Path, Path, list[dict[str, tuple[int, int]]]],
) -> None:
    *killed, finished = resumed[2]
    assert [len(end) >= count for end, count in zip(killed, KILLED_AT, strict=True)] == [True] * 3
    assert all(len(end) < len(finished) for end in killed)
    for end in killed:
        assert end.items() <= finished.items()


def test_a_kill_leaves_no_rubbish_behind(resumed: tuple[Path, Path, Any]) -> None:
    assert list((resumed[1] / "store" / "making").iterdir()) == []


def test_a_resumed_run_is_recorded_once(resumed: tuple[Path, Path, Any]) -> None:
    data_dir = resumed[1]
    document = json.loads((data_dir.parent / "out.json").read_text())
    assert_recorded_once(data_dir, document["variants"])


def assert_recorded_once(data_dir: Path, variants: list[dict[str, Any]]) -> None:
    """One finished run of MLflow's for the pipeline, one with its status for each variant, one version.

    What a search had no time to begin is recorded, too, and no variant.
    """
    tracker = Tracker.open(data_dir)
    experiment = tracker.client.get_experiment_by_name("images")
    assert experiment is not None
    runs = tracker.client.search_runs([experiment.experiment_id])
    assert len({run.data.tags[KEY] for run in runs}) == len(runs)
    begun = [run for run in runs if run.data.tags.get("pareflow.status") != "pruned"]
    expected = ["FINISHED" if variant["status"] == "ok" else "FAILED" for variant in variants]
    assert Counter(run.info.status for run in begun) == Counter(["FINISHED", *expected])
    points = [
        (run.info.run_id, name, point.step)
        for run in runs
        for name in run.data.metrics
        for point in tracker.client.get_metric_history(run.info.run_id, name)
    ]
    assert len(points) == len(set(points)) > 0
    assert len(tracker.versions("images")) == 1


@pytest.mark.parametrize("damage", ["flipped bit", "deleted file"])
def test_only_what_is_damaged_is_made_again(
    resumed: tuple[Path, Path, Any], start: Start, entries: Entries, damage: str
) -> None:
    config, data_dir, _ = resumed
    before = entries(data_dir)
    winner = json.loads((data_dir.parent / "out.json").read_text())["winner"]
    (artifact,) = (data_dir / "store" / "entries" / winner).glob("*.onnx")
    damaged = {winner}
    if damage == "deleted file":
        artifact.unlink()
    else:
        others = (data_dir / "store" / "entries").glob("*/*.onnx")
        damaged |= {path.parent.name for path in others if path.samefile(artifact)}  # one file, linked
        content = bytearray(artifact.read_bytes())
        content[len(content) // 2] ^= 1
        artifact.write_bytes(content)
    assert start(config, data_dir).wait(PATIENCE_SECONDS) == 0
    after = entries(data_dir)
    assert after.keys() == before.keys()
    assert {key for key in after if after[key] != before[key]} == damaged


def test_two_runs_at_once_share_the_work(
    start: Start, entries: Entries, pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    config, data_dir = pipeline_file(), tmp_path / "data"
    with watching(entries, data_dir) as seen:
        processes = [start(config, data_dir) for _ in range(2)]
        codes = [process.wait(PATIENCE_SECONDS) for process in processes]
    assert codes == [0, 0], (tmp_path / "err.txt").read_text()
    made = {key: versions for key, versions in seen.items() if len(versions) > 1}
    assert len(seen) > 10
    assert made == {}
    document = json.loads(next((data_dir / "runs").glob("*/run.json")).read_text())
    assert_recorded_once(data_dir, document["variants"])


@contextmanager
def watching(entries: Entries, data_dir: Path) -> Iterator[dict[str, set[Any]]]:
    """Every version of every entry that was seen: one that is made twice has two."""
    seen: dict[str, set[Any]] = defaultdict(set)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            try:
                for key, version in entries(data_dir).items():
                    seen[key].add(version)
            except FileNotFoundError:
                continue  # one was just being moved

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield seen
    over.set()
    watcher.join()
