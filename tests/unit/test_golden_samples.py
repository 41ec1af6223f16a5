"""How many samples a package repeats its answers to, and how often they are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pareflow.serving.executable import Executable, Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.model import PackagedModel
from pareflow.serving.plan import ServingPlan
from pareflow.stages import jobs
from pareflow.variant import Step

Packaged = Callable[..., Path]


@pytest.mark.parametrize(("numbers", "samples"), [(68 * 3, 3), (1, 2), (2**18, 8)])
def test_golden_samples_are_as_many_as_fit(
    make_package: Packaged,
    workloads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbers: int,
    samples: int,
) -> None:
    """Each is 64 pixels and 4 scores; of a segmentation eight take a gigabyte of JSON."""
    monkeypatch.setattr(jobs, "GOLDEN_NUMBERS", numbers)
    images = {"file": {"path": "images.py"}}
    model = PackagedModel(make_package(images, workloads, tmp_path, Step("onnxruntime"), "images"))
    golden = model.golden()
    assert {len(golden[part]) for part in ("samples", "predictions")} == {samples}
    assert {len(output) for output in golden["outputs"].values()} == {samples}
    model.check_golden()


def test_golden_answers_are_read_once_where_a_version_is_opened(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, golden = list[PackagedModel](), PackagedModel.golden

    def noted(model: PackagedModel) -> dict[str, Any]:
        read.append(model)
        return golden(model)

    monkeypatch.setattr(PackagedModel, "golden", noted)
    opened = Executable(Release("images", "1", packaged("images")), ServingPlan())
    Hosted(opened, {}, ServingPlan())
    opened.close()
    assert read == [opened.model]
