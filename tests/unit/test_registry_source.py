"""Versions out of the registry: plans of other pareflows and environments, and who waits for whom."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pareflow.serving.executable import Release
from tasks.locking import flocked
from tasks.serving import RegistrySource, plan_tag
from tasks.thresholds import calibrate_again
from tasks.tracking import CONTENT
from tests.unit.conftest import Packaged

BACKEND = "onnxruntime"
PATIENCE_S = 20.0
UNREADABLE = '{"policies": [{"dynamic_batching": {"new_key": 1}}]}'


@dataclass
class Registry:
    """What a source asks of a tracker, of one model whose champion a test moves."""

    tags: dict[str, dict[str, str]]
    """Of the versions, by number."""
    champion: str = "1"
    kept: dict[str, str] = field(default_factory=dict)
    """The plans that were kept, by number."""

    def model(self, name: str) -> Any:
        return SimpleNamespace(aliases={"champion": self.champion}, tags={})

    def version(self, name: str, number: str) -> Any:
        return SimpleNamespace(name=name, version=number, tags=self.tags[number])

    def alias(self, name: str, alias: str) -> Any:
        return self.version(name, self.champion)

    def tag_version(self, name: str, number: str, tag: str, value: str) -> None:
        self.kept[number] = value


Registered = Callable[..., Registry]


@pytest.fixture
def registered(packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registered:
    """A registry of versions that lie whole in the data folder `tmp_path`, by the tags of each."""

    def made(*tags: dict[str, str]) -> Registry:
        found = {}
        for number, own in enumerate(tags, 1):
            content = str(number) * 64
            shutil.copytree(packaged("images"), tmp_path / "served" / "images" / content[:32])
            found[str(number)] = {**own, CONTENT: content}
        registry = Registry(found)
        monkeypatch.setattr("tasks.serving.Tracker.open", lambda _: registry)
        return registry

    return made


def champion(data_dir: Path) -> RegistrySource:
    return RegistrySource("models:/images@champion", data_dir)


def test_a_version_is_served_without_a_plan_that_cannot_be_read_here(
    registered: Registered, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A newer pareflow kept it, with a setting that this one does not know. It is told once."""
    registry = registered({plan_tag(BACKEND): UNREADABLE}, {})
    source = champion(tmp_path)
    found = [source.current() for _ in range(2)]
    assert [(release.version, release.plan) for release in found] == [("1", None)] * 2
    assert source.copy("1") == found[0].package
    assert caplog.text.count("the plan kept with version 1 of images cannot be read here") == 1
    assert "new_key" in caplog.text
    new, run = Release("images", "2", tmp_path), SimpleNamespace(data_dir=tmp_path)
    assert calibrate_again(run, registry, new, BACKEND, tuned=False) is None  # type: ignore[arg-type]
    assert registry.kept == {}


def test_a_plan_that_was_noted_and_cannot_be_read_here_is_left_out_without_the_registry(
    registered: Registered, tmp_path: Path
) -> None:
    registered({plan_tag(BACKEND): '{"sessions": 2}'})
    release = champion(tmp_path).current()
    note = tmp_path / "served" / "images" / "last.json"
    assert '"sessions": 2' in note.read_text()
    note.write_text(note.read_text().replace('"sessions": 2', '"new_key": 2'))
    last = champion(tmp_path).last()
    assert last is not None
    assert (last.package, last.plan) == (release.package, None)


def test_that_a_version_has_plans_of_other_environments_only_is_told_once(
    registered: Registered, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an update of the kernel, of Python, or of what runs it (law 8)."""
    elsewhere = {"pareflow.plan.000000000000": '{"sessions": 2}'}
    registry = registered(elsewhere, {**elsewhere, plan_tag(BACKEND): '{"sessions": 3}'}, {})
    source = champion(tmp_path)
    assert [source.current().plan for _ in range(2)] == [None, None]
    for number in ("2", "3"):
        registry.champion = number
        source.current()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("version 1 of images has plans of other environments only")


def test_what_was_noted_of_another_environment_is_not_taken_without_the_registry(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime was updated while the registry is away (law 8)."""
    registered({plan_tag(BACKEND): '{"sessions": 2}'})
    current = champion(tmp_path).current()
    assert champion(tmp_path).last() == current
    monkeypatch.setattr("tasks.serving.here", lambda backend: "another environment")
    last = champion(tmp_path).last()
    assert last is not None
    assert (last.version, last.plan, last.judged) == ("1", None, None)


def test_a_version_that_is_here_whole_waits_for_no_download_of_another(
    registered: Registered, tmp_path: Path
) -> None:
    """As on the way back to it: what is served is noted under a lock of its own."""
    registry = registered({}, {})
    source = champion(tmp_path)
    source.current()
    registry.champion = "2"
    with ThreadPoolExecutor(1) as pool, flocked(tmp_path / "served" / "images", "copies"):
        found = pool.submit(source.current)
        assert found.result(PATIENCE_S).version == "2"
    last = champion(tmp_path).last()
    assert last is not None
    assert last.version == "2"
