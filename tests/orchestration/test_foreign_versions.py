"""Versions that pareflow did not make, in a registry that it shares: refused by name, and in nobody's way."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import commands
from pareflow.errors import InputError, TrackingError
from tasks import steps
from tasks.copying import copy
from tasks.promotion import number, promote_challenger
from tasks.retraining import beside_champion
from tasks.tracking import Tracker
from tests.orchestration.conftest import Judged

FOREIGN = "models:/images/1"


@pytest.fixture
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    """Its champion is a folder that somebody registered."""
    tracker = new_tracker(tmp_path / "data")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.pkl").write_bytes(b"weights")
    tracker.client.create_registered_model("images")
    tracker.client.create_model_version("images", (tmp_path / "theirs").as_uri())
    tracker.set_alias("images", "champion", "1")
    return tracker


@pytest.mark.parametrize("does", ["check", "check by a YAML", "export", "copy"])
def test_what_pareflow_did_not_register_is_refused_as_that(
    does: str, tracker: Tracker, judged: Judged, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    other = Tracker.open(tmp_path / "production").uri
    done: dict[str, Callable[[], object]] = {
        "check": lambda: commands.check_version(FOREIGN, None, data),
        "check by a YAML": lambda: commands.check_version(FOREIGN, judged.run.config, data),
        "export": lambda: commands.export(FOREIGN, tmp_path / "bundle.zip", data),
        "copy": lambda: copy(tracker, FOREIGN, other, data),
    }
    with pytest.raises(InputError, match="must have been registered by pareflow"):
        done[does]()


def test_a_run_under_a_foreign_champion_ends_and_a_person_passes_over_it(
    tracker: Tracker, judged: Judged, tmp_path: Path
) -> None:
    shutil.copytree(judged.run.data_dir / "store", tmp_path / "data" / "store")
    run = dataclasses.replace(judged.run, data_dir=tmp_path / "data")
    document = steps.register.fn(run, tracker, tracker.begin(run), judged.int8)
    assert document is not None
    assert (document["version"], document["alias"], document["thresholds"]) == ("2", "challenger", None)
    for said in ("(inconclusive: ", "registered by pareflow", "--over-champion"):
        assert said in document["reason"]
    explained = beside_champion(tracker, run, "1")
    assert explained is not None
    assert "registered by pareflow" in explained["reason"]
    promote_challenger(tracker, run, by="ada", reason="ours", over=True)
    assert number(tracker, "images", "champion") == "2"


def test_a_download_that_fails_says_of_which_file_and_why(tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"file:.*: File package No such artifact: 'package'"):
        tracker.download("images", "1", tmp_path)
