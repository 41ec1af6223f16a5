"""What a command writes where it was told to: whole, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pareflow.errors import InputError
from pareflow.serving import language_model, triton
from pareflow.serving.output import new_folder
from pareflow.serving.plan import ServingPlan
from pareflow.stages import splitting
from pareflow.stages.exporting import export_kserve
from pareflow.variant import Step

Written = tuple[Callable[[Path], object], str]
"""What writes into a folder, and the name of what is new there."""


@pytest.fixture(params=["kserve", "triton", "split", "pack"])
def written(request: pytest.FixtureRequest, packaged: Callable[..., Path], tmp_path: Path) -> Written:
    if request.param == "split":
        for name in ("00/device/model", "00/server/model"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text(name)
        none: Any = None
        return lambda into: splitting.write(none, tmp_path, [none], 0, into / "halves"), "halves"
    if request.param == "pack":
        from tests.unit.test_serving_language_models import checkpoint

        source = checkpoint(tmp_path / "checkpoint")
        return lambda into: language_model.pack(source, "words", into / "words"), "words"
    package, plan = packaged("images", Step("openvino")), ServingPlan()
    if request.param == "triton":
        return lambda into: triton.write(package, plan, (), (), into), "images"
    cluster: dict[str, Any] = {"image": "pareflow:1", "storage_uri": "s3://models", "memory_mib": 512}
    return lambda into: export_kserve(package, plan, into / "service", **cluster), "service"


def test_an_interrupted_command_leaves_nothing_and_goes_on(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the second file is copied: the same command, which wants a new folder, finds one."""
    write, name = written
    (tmp_path / "to").mkdir()
    copied, copyfile = [], shutil.copyfile

    def until_the_second(source: Path, to: Path, **options: Any) -> Any:
        copied.append(to)
        if len(copied) == 2:
            raise KeyboardInterrupt
        return copyfile(source, to, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", until_the_second)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []
    write(tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == [name]
    with pytest.raises(InputError, match="must not overwrite"):
        write(tmp_path / "to")


def test_an_empty_folder_is_as_new(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as made:
        (made / "file").write_text("abc")
    assert (tmp_path / "empty" / "file").read_text() == "abc"


def test_where_no_folder_can_be_it_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="must be written"), new_folder(tmp_path / "file" / "new"):
        pass
