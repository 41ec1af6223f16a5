"""`pareflow check models:/…`: a registered version measured again here, and whether its verdict holds."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import commands
from flows.cli import app
from pareflow.errors import InputError
from pareflow.serving.model import write_manifest
from tasks.tracking import Tracker, verdict_tag_of, where_judged
from tests.orchestration.conftest import Finished, Judged

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def registered(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run's data folder: judging again measures again."""
    return shutil.copytree(finished.data_dir, tmp_path_factory.mktemp("registered") / "data")


@pytest.mark.slow
def test_a_verdict_that_still_holds_is_told_with_both_checks(pareflow_command: Run, registered: Path) -> None:
    """And the pipeline's own run, which has the same id, finds its clock as it left it."""
    (clock,) = (registered / "runs").glob("*/clock.jsonl")
    before = clock.read_text()
    assert "look 2 at the finalists" in before
    done = pareflow_command("check", "models:/images@champion", "--data-dir", registered, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["name"], document["version"], document["holds"]) == ("images", "1", True)
    assert document["environment_changes"] == {}
    assert document["was"]["decision"] == document["now"]["decision"] == "promote"
    then, now = ([check["clause"] for check in document[when]["checks"]] for when in ("was", "now"))
    assert then == now == ["quality.max_drop", "size.max_mib", "do_no_harm"]
    assert clock.read_text() == before


@pytest.mark.slow
def test_a_verdict_that_no_longer_holds_exits_with_3(
    pareflow_command: Run, registered: Path, pipeline_file: Callable[..., Path]
) -> None:
    """The SLA has become stricter since: the same version, by its number, at another pipeline."""
    strict = pipeline_file("stricter", sla={"size": {"max_mib": 0.0001}})
    done = pareflow_command(
        "check", "models:/images/1", "--config", strict, "--data-dir", registered, "--json"
    )
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert not document["holds"]
    assert "size.max_mib" in document["reason"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models:/images@absent"], "the registry has no such version"),
        (["models:/images/7"], "the registry has no such version"),
        (["models:/absent@champion"], "the registry has no such version"),
        (["models:/images"], "must be named models:/NAME@ALIAS or models:/NAME/VERSION"),
        (["models:/images@champion", "--config", "absent.yaml"], "there is no absent.yaml"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_found_is_told(registered: Path, words: list[str], said: str) -> None:
    error = CliRunner().invoke(app, ["check", *words, "--data-dir", str(registered)]).exception
    assert isinstance(error, InputError)
    assert said in str(error)


def test_a_version_that_is_not_what_was_registered_is_neither_judged_nor_exported(
    new_tracker: Callable[[Path], Tracker], judged: Judged, tmp_path: Path
) -> None:
    """Its code was rewritten, and its own list of digests with it."""
    tracker = new_tracker(tmp_path)
    parent = tracker.begin(judged.run)
    version = tracker.register(judged.run, parent, judged.package(judged.fp32), judged.fp32)
    verdict = verdict_tag_of(where_judged(judged.run, "onnxruntime"))
    tracker.tag_version("images", str(version.version), verdict, None)
    package = Path(str(version.source).removeprefix("file://")) / "data" / "package"
    with (package / "workload" / "images.py").open("a") as code:
        code.write("# rewritten\n")
    document = json.loads((package / "model.json").read_text())
    (package / "model.json").unlink()
    write_manifest(package, document)
    uri, refused = f"models:/images/{version.version}", "must be what was registered"
    with pytest.raises(InputError, match=refused):
        commands.check_version(uri, judged.run.config, tmp_path)
    with pytest.raises(InputError, match=refused):
        commands.export(uri, tmp_path / "images.zip", tmp_path)
    assert verdict not in tracker.version("images", str(version.version)).tags
