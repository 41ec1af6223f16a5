"""What registered models need of the store, and how it is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pareflow.collection import holding
from pareflow.stages import keeping
from pareflow.stages.jobs import calibration_key, original
from pareflow.stages.monitoring import CALIBRATION, answering_key
from pareflow.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two workloads, each with its original, a variant and a package; and a quality."""
    store = Store(tmp_path / "store")
    for name in ("a", "b"):
        put(store, original(name).id, "network.pt", "")
        put(store, f"variant-{name}", "model.onnx", "")
        lineage = {"variant": f"variant-{name}", "workload_digest": name}
        put(store, f"package-{name}", "model.json", json.dumps(lineage))
    put(store, "quality", "quality.json", "{}")
    return store


def put(store: Store, key: str, file: str, text: str) -> None:
    def write(into: Path) -> None:
        (into / file).write_text(text)

    store.ensure(key, write)


def test_a_version_needs_its_variant_its_packages_its_original_and_what_a_monitor_compares_with(
    store: Store,
) -> None:
    put(store, "judged again", "model.json", json.dumps({"variant": "variant-a", "workload_digest": "a"}))
    compared = {answering_key("a"), calibration_key("a", CALIBRATION)}
    keys = {"variant-a", "package-a", "judged again", original("a").id, *compared}
    assert keeping.needed(store, {"variant-a": "models:/a/1"}) == dict.fromkeys(keys, "models:/a/1")


def test_what_is_not_registered_is_not_needed(store: Store) -> None:
    assert keeping.needed(store, {}) == {}
    assert keeping.needed(store, {"elsewhere": "models:/c/1"}) == {"elsewhere": "models:/c/1"}


@pytest.mark.parametrize("text", ["", "5", "[]", "{}"])
def test_a_damaged_package_keeps_its_variant_all_the_same(store: Store, text: str) -> None:
    (store.root / "entries" / "package-a" / "model.json").write_text(text)
    assert keeping.needed(store, {"variant-a": "models:/a/1"}) == {"variant-a": "models:/a/1"}


def test_contents_are_told_by_kind_by_need_and_by_who_runs(store: Store) -> None:
    (store.root / "making" / "dead.abc").mkdir()
    store.scratch("killed").mkdir(parents=True)
    with holding(store, "optimize a"):
        told: dict[str, Any] = keeping.contents(store, {"variant-a": "models:/a/1"})
    assert told["entries"] == 8
    assert {row["kind"]: row["entries"] for row in told["kinds"]} == {
        "networks and executables": 4,
        "packages": 2,
        "qualities": 1,
        "unfinished builds": 1,
    }
    assert [(row["by"], row["entries"]) for row in told["needed"]] == [("models:/a/1", 3)]
    assert [row["what"] for row in told["running"]] == ["optimize a"]
    assert told["leftovers"] == 1


def test_whatever_a_stage_writes_into_an_entry_has_a_kind(checkout: Path) -> None:
    sources = (checkout / "pareflow" / "stages").glob("*.py")
    found = re.compile(r'into / "([\w.]+)"\)\.write|run\.kept\(.*?, "([\w.]+)"')
    written = {name for source in sources for names in found.findall(source.read_text()) for name in names}
    written -= {"", "golden.json"}  # that of a package, which is told by its model.json
    assert len(written) > 10
    assert written <= keeping.KINDS.keys()
