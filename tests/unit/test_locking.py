"""Named locks of a data folder: whoever may use it can take them, and is told where that cannot be."""

import os
import stat
from pathlib import Path

import pytest

from pareflow.errors import StoreError
from tasks.locking import flocked
from tasks.promotion import roll_back
from tasks.tracking import Tracker


def test_locks_of_a_user_with_a_careful_umask_can_be_taken_by_others(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with flocked(tmp_path / "locks", "mlflow"):
            assert stat.S_IMODE((tmp_path / "locks" / "mlflow.lock").stat().st_mode) == 0o666
    finally:
        os.umask(before)


def test_what_stands_in_the_way_of_a_lock_is_told(tmp_path: Path) -> None:
    """Before a server is asked anything."""
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(StoreError, match=r"locks.* Name another with --data-dir") as caught:
        roll_back(Tracker("http://127.0.0.1:9", None, tmp_path / "locks"), "images")
    assert caught.value.exit_code == 4
