"""The inputs that measurements cycle through."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.measuring.contestant import read_feeds
from pareflow.stages import jobs
from pareflow.store import Store

OPEN = """
from .texts import Texts


class OpenTexts(Texts):
    def preprocess(self, samples):
        return {name: a[:, : max(map(len, samples))] for name, a in super().preprocess(samples).items()}
"""


def taken(name: str, workloads: Path, root: Path) -> tuple[list[Any], bool]:
    reference: dict[str, Any] = {"file": {"path": f"{name}.py"}}
    jobs.feeds(reference, str(workloads), str(root), 1)
    described = jobs.describe(reference, str(workloads), None)
    entry = Store(root).find(jobs.feeds_key(described["digest"], 1))
    assert entry is not None
    return read_feeds(entry / "feeds.npz"), described["varied"]


def test_inputs_of_one_size_are_as_many_as_are_told_apart(workloads: Path, tmp_path: Path) -> None:
    feeds, varied = taken("images", workloads, tmp_path)
    assert (len(feeds), varied) == (jobs.FEEDS, False)


def test_of_inputs_that_differ_in_size_all_are_taken(own_workloads: Path, tmp_path: Path) -> None:
    """What takes long may be rare: of 32 texts none may be long. There are 100."""
    (own_workloads / "open_texts.py").write_text(OPEN)
    feeds, varied = taken("open_texts", own_workloads, tmp_path)
    assert (len(feeds), varied) == (100, True)


def test_large_inputs_that_differ_are_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a third of a MiB each, beside 32, which are taken in any case."""
    monkeypatch.setattr(jobs, "VARIED_MIB", 12)
    batches = [{"x": np.zeros((1, 2**18 // 3 + i), np.float32)} for i in range(50)]
    assert len(list(jobs._enough(iter(batches)))) == 35
