"""Law 6: ids are of content and recipe; what is finished is kept whole, whatever is killed or damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pareflow import network
from pareflow.collection import collect, holding
from pareflow.hardware.device import device_lock
from pareflow.stages import building, jobs, optimization
from pareflow.stages.baseline import baseline
from pareflow.stages.building import variant_of
from pareflow.stages.run import Row, Run
from pareflow.store import MANIFEST, Store
from pareflow.variant import Recipe, Step, Variant
from pareflow.workload import load
from tests.processes import gone, started, wait_for

MAKER = """
import os, sys, time
from pathlib import Path
from pareflow.store import Store

def write(into):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    (into / "half").write_text("half")
    Path(sys.argv[3]).touch()
    while not Path(sys.argv[4]).exists():
        time.sleep(0.01)
    (into / "file").write_text("whole")

print(Store(Path(sys.argv[1])).ensure("key", write))
"""


class Makers:
    """Processes that make one entry, and stop half-way until they may go on."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.store, self.log = folder / "store", folder / "log"
        self.begun, self.go_on = folder / "begun", folder / "go on"
        self._checkout, self.running = checkout, list[subprocess.Popen[str]]()

    def start(self) -> subprocess.Popen[str]:
        paths = map(str, (self.store, self.log, self.begun, self.go_on))
        command = [sys.executable, "-c", MAKER, *paths]
        self.running.append(subprocess.Popen(command, cwd=self._checkout, stdout=subprocess.PIPE, text=True))
        return self.running[-1]

    def wait_until_begun(self) -> None:
        wait_for(self.begun, self.running[-1])

    def times_made(self) -> int:
        return len(self.log.read_text().splitlines())


@pytest.fixture
def makers(tmp_path: Path, checkout: Path) -> Iterator[Makers]:
    made = Makers(tmp_path, checkout)
    yield made
    for process in made.running:
        process.kill()
        process.communicate()


def test_killed_maker_leaves_nothing_and_the_next_one_succeeds(makers: Makers) -> None:
    first = makers.start()
    makers.wait_until_begun()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert Store(makers.store).find("key") is None
    assert list((makers.store / "entries").iterdir()) == []
    makers.go_on.touch()
    second = makers.start()
    assert second.wait(60) == 0
    assert sorted(path.name for path in (makers.store / "entries" / "key").iterdir()) == [
        "file",
        "half",
        "manifest.json",
    ]
    assert list((makers.store / "making").iterdir()) == []


def test_second_process_waits_and_shares(makers: Makers) -> None:
    first = makers.start()
    makers.wait_until_begun()
    second = makers.start()
    time.sleep(1)  # were it not to wait, it would have begun by now
    assert makers.times_made() == 1
    makers.go_on.touch()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outputs[0] == outputs[1] == f"{makers.store / 'entries' / 'key'}\n"
    assert makers.times_made() == 1


def test_ids_do_not_depend_on_the_folder_the_process_or_the_spelling(
    trained: Any, own_workloads: Path, tmp_path: Path
) -> None:
    """The tiny workload of another folder, opened by another process, named in two ways."""
    elsewhere = Run.open(trained.run.spec, own_workloads / "images.yaml", tmp_path / "other data")
    assert elsewhere.facts == trained.run.facts
    assert elsewhere.id == trained.run.id
    for path in ("rogue_images.py", "./rogue_images.py", str(own_workloads / "rogue_images.py")):
        assert load({"file": {"path": path}}, own_workloads).digest == trained.run.facts.digest


def test_ids_do_not_depend_on_the_order_or_completeness_of_settings(trained: Any) -> None:
    spelled = [
        Recipe((Step("static_int8"),), Step("onnxruntime", {"threads": 1, "graph_level": "all"})),
        Recipe(
            (Step("static_int8", {"method": "minmax"}),),
            Step("onnxruntime", {"graph_level": "all", "threads": 1}),
        ),
    ]
    assert len({variant_of(recipe, trained.run.facts.digest).id for recipe in spelled}) == 1


def test_ids_do_not_depend_on_the_clock(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = trained.strong.recipe
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert variant_of(recipe, trained.run.facts.digest).id == trained.strong.id


def test_a_mended_converter_reaches_what_was_compiled_before_and_leaves_what_was_trained(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes anew has the name that the flow's machine looks for."""
    run, shared = trained.run, Step("kmeans_sharing")
    compiled = Recipe((shared, Step("fp16")), Step("onnxruntime"))
    eager = Recipe((shared,), Step("torch_eager"))

    def made(recipe: Recipe) -> list[Variant]:
        return jobs.links(recipe, run.facts.digest)

    before = made(compiled), made(eager)
    monkeypatch.setattr(network, "code_version", lambda _: "mended")
    kept = [old == new for old, new in zip(before[0], made(compiled), strict=True)]
    assert kept == [True, True, False, False]
    assert made(eager) == before[1]
    plain = Recipe((), Step("onnxruntime"))
    expected = variant_of(plain, run.facts.digest).id
    assert expected != trained.strong.id
    jobs.build(run.spec.workload, str(run.folder), str(run.store.root), plain.to_json())
    assert run.store.holds(expected)


def test_a_run_is_the_same_whatever_its_store_may_hold(trained: Any) -> None:
    assert trained.with_budget(store_gib=1).id == trained.with_budget(store_gib=None).id == trained.run.id
    assert trained.with_budget(minutes=1).id != trained.run.id


def inodes(run: Run) -> dict[str, int]:
    """Each entry of the store by its folder's inode, which is new when the entry is."""
    return {path.name: path.stat().st_ino for path in (run.store.root / "entries").iterdir()}


@pytest.mark.parametrize("damage", ["flipped bit", "deleted file"])
def test_damaged_artifact_is_noticed_and_only_that_made_again(damage: str, trained: Any) -> None:
    """Torch eager's artifact is a file of its own; every other entry is kept as it is."""
    eager = trained.rows[1]
    artifact = trained.run.store.find(eager.id) / "network.pt"
    before = inodes(trained.run)
    if damage == "deleted file":
        artifact.unlink()
    else:
        whole = bytearray(artifact.read_bytes())
        whole[len(whole) // 2] ^= 1
        artifact.write_bytes(whole)
    assert trained.run.store.find(eager.id) is None
    assert baseline(trained.run) == trained.rows
    after = inodes(trained.run)
    assert {key for key in before if before[key] != after[key]} == {eager.id}
    assert after.keys() == before.keys()


RUNNER = """
import json, sys
from pathlib import Path
from pareflow.spec import parse
from pareflow.stages import optimization
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step
from pareflow.workload import define

spec, config, data_dir, begun = json.loads(sys.argv[1])
define(spec["workload"], Path(config).parent)
run = Run.open(parse(spec, "argument"), Path(config), Path(data_dir))
optimization.make(run, Row(Recipe((Step("hangs", {"begun": begun}),), Step("torch_eager"))))
"""


@pytest.mark.usefixtures("rogues")
def test_killed_run_loses_only_what_was_in_flight(trained: Any, tmp_path: Path, checkout: Path) -> None:
    run = trained.run
    before = inodes(run)
    begun = tmp_path / "begun"
    arguments = json.dumps([run.spec.to_json(), str(run.config), str(run.data_dir), str(begun)])
    with subprocess.Popen([sys.executable, "-c", RUNNER, arguments], cwd=checkout) as runner:
        try:
            (child,) = started(begun, runner)
        finally:
            runner.kill()
    assert gone(child)
    with device_lock(run.spec.target.device, exclusive=True):  # waits for ever if the dead still held it
        pass
    assert inodes(run) == before
    assert baseline(run) == trained.rows
    good = optimization.make(run, Row(Recipe((), Step("onnxruntime", {"graph_level": "none"}))))
    assert good.status == "ok"
    assert before.items() <= inodes(run).items()


def test_copied_store_is_as_good(trained: Any, shared_folder: Path, tmp_path: Path) -> None:
    """Entries know no paths: moved with all its files, the store goes on."""
    moved = shutil.copytree(trained.run.data_dir / "store", tmp_path / "moved")
    assert Store(moved).find(trained.strong.id) is not None
    written_in = os.fsencode((shared_folder / "trained").resolve(strict=True))
    assert not [path for path in moved.rglob("*") if path.is_file() and written_in in path.read_bytes()]


def test_a_run_that_finds_a_variant_keeps_what_it_was_made_from(trained: Any) -> None:
    """Another row may begin with a network in its middle, or a maker go on from what a killed one left."""
    run, store = trained.run, trained.run.store
    row = Row(Recipe((Step("kmeans_sharing"), Step("static_int8")), Step("onnxruntime")))
    building.make(run, row)
    made_from = [link.id for link in jobs.links(row.recipe, run.facts.digest)]
    scratch = store.scratch(made_from[1])
    scratch.mkdir(parents=True)
    for path in (scratch, *store.root.glob(f"entries/*/{MANIFEST}")):
        os.utime(path, ns=(1, 1))
    with holding(store, "images"):
        building.make(run, row)
        collect(store, 0)
    assert all(map(store.holds, made_from))
    assert scratch.exists()
