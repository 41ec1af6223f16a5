"""A full disk and a read-only store: exit code 4, what is finished is kept, and the same call goes on."""

import dataclasses
import errno
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pareflow import network
from pareflow import spec as specs
from pareflow.collection import collect
from pareflow.errors import StoreError
from pareflow.isolation import Limits, run_isolated
from pareflow.network import FORMS, Form
from pareflow.reporting import page
from pareflow.serving.output import new_folder
from pareflow.stages import optimization, outcome, profiling
from pareflow.stages.baseline import baseline
from pareflow.stages.run import Row, Run
from pareflow.store import Store
from pareflow.variant import Recipe, Step
from tasks import steps

Mount = Callable[..., Any]
GRAPH_LEVEL_NONE = Row(Recipe((), Step("onnxruntime", {"graph_level": "none"})))


def check(error: StoreError, found: str) -> None:
    assert error.exit_code == 4
    assert "must" in error.must
    assert found in error.found
    assert "what is finished is kept" in error.remedy


def write_a_mebibyte(into: Path) -> None:
    (into / "file").write_bytes(b"x" * 2**20)


def test_entry_that_does_not_fit_leaves_nothing_and_fits_later(mount: Mount) -> None:
    disk = mount()
    store = Store(disk.path / "store")
    kept = store.ensure("kept", write_a_mebibyte)
    disk.fill()
    with pytest.raises(StoreError) as caught:
        store.ensure("new", write_a_mebibyte)
    check(caught.value, "the disk is full")
    assert list((store.root / "making").iterdir()) == []
    assert store.find("kept") == kept
    assert store.find("new") is None
    disk.empty()
    assert store.ensure("new", write_a_mebibyte).exists()


def test_a_collection_needs_no_room(mount: Mount) -> None:
    """It is what a full disk is told to be freed by: it makes no file and no folder."""
    disk = mount("size=4m,nr_inodes=32")
    store = Store(disk.path / "store")
    store.ensure("old", write_a_mebibyte)
    disk.fill()
    with suppress(OSError):
        for number in range(32):
            (disk.path / str(number)).touch()
    assert collect(store, 0).removed == 1
    assert store.find("old") is None


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_network_is_saved_in_part(
    form: Form, mount: Mount, forms: Callable[[str], Mapping[Form, Path]]
) -> None:
    """Each library writes in its own way; none may take a full disk for success."""
    loaded = network.load(form, forms("images")[form])
    disk = mount()
    store = Store(disk.path / "store")

    def write(into: Path) -> None:
        disk.fill()
        network.save(loaded, form, into)

    with pytest.raises(StoreError) as caught:
        store.ensure("key", write)
    check(caught.value, "the disk is full")
    assert store.find("key") is None


@pytest.mark.parametrize("options", ["size=64k", "size=4m,nr_inodes=9"], ids=["no space", "no inodes"])
def test_disk_that_is_full_from_the_start_is_told(options: str, mount: Mount, workloads: Path) -> None:
    disk = mount(options)
    disk.fill()
    with pytest.raises(StoreError) as caught:
        baseline(
            Run.open(specs.read(workloads / "images.yaml"), workloads / "images.yaml", disk.path / "data")
        )
    check(caught.value, "the disk is full")


@pytest.fixture
def cramped(trained: Any, mount: Mount) -> tuple[Run, Any]:
    """The trained run on a disk that has just become full."""
    disk = mount()
    data_dir = shutil.copytree(trained.run.data_dir, disk.path / "data")
    disk.fill()
    return dataclasses.replace(trained.run, data_dir=data_dir), disk


def test_disk_that_fills_up_ends_the_run_and_not_the_variant(cramped: tuple[Run, Any]) -> None:
    run, disk = cramped
    with pytest.raises(StoreError) as caught:
        optimization.make(run, GRAPH_LEVEL_NONE)
    check(caught.value, "the disk is full")
    disk.empty()
    assert optimization.make(run, GRAPH_LEVEL_NONE).status == "ok"


def test_disk_that_fills_up_while_profiling_is_told(trained: Any, cramped: tuple[Run, Any]) -> None:
    with pytest.raises(StoreError) as caught:
        profiling.profile(cramped[0], trained.rows)
    check(caught.value, "the disk is full")


def test_full_folder_of_temporary_files_is_told(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child cannot even write its answer; that is not the variant's fault."""
    disk = mount("size=64k")
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    disk.fill()
    with pytest.raises(StoreError) as caught:
        run_isolated("platform:machine", {}, Limits(seconds=60), tmp_path / "log")
    check(caught.value, "the disk is full")


@pytest.mark.parametrize("copy", [shutil.copytree, lambda source, to: shutil.copy2(source / "file", to)])
def test_an_output_that_does_not_fit_leaves_nothing(
    copy: Callable[[Path, Path], object], mount: Mount, tmp_path: Path
) -> None:
    """However it is copied: `copytree` collects what the system says."""
    source, disk = tmp_path / "source", mount()
    source.mkdir()
    (source / "file").write_bytes(b"x" * 2**23)
    with (
        pytest.raises(StoreError, match=r"there must be room for .* the disk is full") as caught,
        new_folder(disk.path / "new") as made,
    ):
        copy(source, made / "copied")
    assert caught.value.exit_code == 4
    assert list(disk.path.iterdir()) == []


def test_read_only_store_is_told_and_can_still_be_read(mount: Mount) -> None:
    disk = mount()
    store = Store(disk.path / "store")
    kept = store.ensure("kept", write_a_mebibyte)
    disk.write_protect()
    assert store.find("kept") == kept
    for call in (
        lambda: store.ensure("new", write_a_mebibyte),
        lambda: store.evict("kept"),
        lambda: Store(disk.path / "store"),
        lambda: Store(disk.path / "other"),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        check(caught.value, "read-only file system")
        assert "--data-dir" in caught.value.remedy


def test_damaged_entry_of_a_read_only_store_is_absent(mount: Mount) -> None:
    disk = mount()
    store = Store(disk.path / "store")
    (store.ensure("damaged", write_a_mebibyte) / "file").write_bytes(b"other")
    disk.write_protect()
    assert store.find("damaged") is None


def test_run_on_a_read_only_disk_is_told_at_once(mount: Mount, workloads: Path) -> None:
    disk = mount()
    disk.write_protect()
    with pytest.raises(StoreError) as caught:
        Run.open(specs.read(workloads / "images.yaml"), workloads / "images.yaml", disk.path / "data")
    check(caught.value, "read-only file system")


def test_file_in_the_way_of_the_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "data" / "store")
    check(caught.value, "a file stands in its way")


def test_the_last_outcome_stays_whole_where_a_new_one_is_cut_short(
    judged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a kill amid the writing: `plan`, `export` and `list runs` read it."""
    run = dataclasses.replace(judged.run, data_dir=tmp_path)
    document = outcome.document(run, judged.finalists, judged.finalists, None, None, None)
    steps.record_outcome.fn(run, None, "", document)
    told = run.output / "run.json"
    before = told.read_text()
    monkeypatch.setattr(page, "write", lambda *_: None)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        steps.record_outcome.fn(run, None, "", {**document, "winner": "another"})
    assert told.read_text() == before
