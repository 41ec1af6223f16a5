"""A collection that is killed: what is left of the store works, and the next one clears up after it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pareflow.collection import collect, items, leftovers
from pareflow.store import Store

ENTRIES, FILES = 12, 40
KILLED = """
import sys, time
from pathlib import Path
import pareflow.collection as collection
from pareflow.store import Store

def half(path, **options):
    for file in sorted(path.iterdir())[:3]:
        file.unlink()
    Path(sys.argv[2]).touch()
    time.sleep(1000)

if len(sys.argv) == 3:
    collection.shutil.rmtree = half
print("begins", flush=True)
collection.collect(Store(Path(sys.argv[1])), 0)
"""


def write(into: Path) -> None:
    for number in range(FILES):
        (into / f"file{number}").write_text("x" * 100)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for number in range(ENTRIES):
        store.ensure(f"key{number}", write)
    return store


def check_that_it_works(store: Store) -> None:
    """Every entry is there whole or not at all; the next collection clears up; what is gone can be made."""
    present = {path.name for path in (store.root / "entries").iterdir()}
    assert {f"key{n}" for n in range(ENTRIES) if store.find(f"key{n}")} == present
    assert collect(store, 2**40).removed == 0
    assert list((store.root / "making").iterdir()) == []
    for number in range(ENTRIES):
        assert len(list(store.ensure(f"key{number}", write).iterdir())) == FILES + 1
    assert collect(store, 0).left == 0
    assert items(store) == []
    assert list((store.root / "making").iterdir()) == []


def test_killed_between_moving_an_entry_and_deleting_it(store: Store, tmp_path: Path, checkout: Path) -> None:
    begun = tmp_path / "begun"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root), str(begun)], cwd=checkout
    ) as process:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert leftovers(store) == []  # it holds the key
        process.send_signal(signal.SIGKILL)
    (left,) = leftovers(store)
    assert len(list(left.iterdir())) == FILES + 1 - 3
    assert len(list((store.root / "entries").iterdir())) == ENTRIES - 1
    check_that_it_works(store)


@pytest.mark.parametrize("gone", [1, 4, 8])
def test_killed_anywhere(store: Store, checkout: Path, gone: int) -> None:
    command = [sys.executable, "-c", KILLED, str(store.root)]
    with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"
        while len(list((store.root / "entries").iterdir())) > ENTRIES - gone:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    check_that_it_works(store)
