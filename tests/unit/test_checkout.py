"""Where a worker finds the flows, their pipelines and the store."""

from pathlib import Path

import pytest

from flows import checkout
from pareflow.errors import EnvironmentUnfitError


def test_it_is_the_folder_that_flows_and_configs_lie_in() -> None:
    folder = Path(checkout.enter()["directory"])
    assert (folder / "flows" / "pipeline.py").is_file()
    assert (folder / "configs").is_dir()


def test_an_installation_without_a_checkout_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flows alone would run in a folder without pipelines."""
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    with pytest.raises(EnvironmentUnfitError, match=f"{tmp_path} has no prefect.yaml.*--editable"):
        checkout.enter()
