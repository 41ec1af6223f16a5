"""Device profiles: every shipped file, and what is wrong with a bad one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pareflow import spec as specs
from pareflow.catalog import BACKENDS
from pareflow.errors import InputError, SpecError
from pareflow.hardware.device_profile import DeviceProfile

DEVICES = Path(__file__).parents[2] / "configs" / "devices"
SMALL: dict[str, Any] = {
    "name": "small",
    "memory_mib": 4,
    "storage_mib": 2,
    "cores": 1,
    "memory_gb_per_s": 2,
    "units": [{"name": "core", "gops": {"int8": 1}, "backends": {"onnxruntime": "itself"}}],
    "sources": ["made up"],
}


def written(folder: Path, document: Any) -> Path:
    path = folder / "device.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_every_shipped_profile_is_read_and_says_where_its_numbers_come_from() -> None:
    paths = sorted(DEVICES.rglob("*.yaml"))
    assert len(paths) >= 6
    for path in paths:
        profile = specs.read_profile(path)
        assert len(profile.sources) >= 2, path
        assert set(profile.backends) & BACKENDS.keys(), path
        strongest = profile.units[0].gops
        assert all(strongest.get("int8", 0) >= unit.gops.get("int8", 0) for unit in profile.units), path


def test_what_a_profile_derives_is_what_its_comment_says() -> None:
    """4 cores × 2.4 GHz × 2 pipes × 4 lanes × 2 operations."""
    profile = specs.read_profile(DEVICES / "pi5.yaml")
    assert profile.units[0].gops["float32"] == pytest.approx(4 * 2.4 * 2 * 4 * 2)
    assert profile.memory_gb_per_s == pytest.approx(4 * 4.267, rel=0.01)


def test_units_are_found_by_the_backend_that_runs_on_them() -> None:
    profile = specs.read_profile(DEVICES / "jetson_orin_nano.yaml")
    assert profile.backends[0] == "tensorrt"
    assert [unit.name.split()[0] for unit in profile.units_of("onnxruntime")] == ["Ampere", "6"]
    assert profile.units_of("openvino") == ()


def test_every_problem_is_told_with_what_was_meant(tmp_path: Path) -> None:
    unit = {"name": "core", "gops": {"int88": 1}, "backends": {"onxruntime": "itself"}, "flops": 1}
    document = {**SMALL, "memory_mb": 4, "cores": 0, "units": [unit]}
    with pytest.raises(SpecError) as caught:
        specs.read_profile(written(tmp_path, document))
    assert set(caught.value.problems) >= {
        "unknown key 'memory_mb'; did you mean 'memory_mib'?",
        "cores: should be greater than or equal to 1, but got 0",
        "units.0.gops.int88: unknown name 'int88'; did you mean 'int8'?",
        "units.0.backends.onxruntime: unknown name 'onxruntime'; did you mean 'onnxruntime'?",
        "units.0.flops: unknown key 'flops'; did you mean 'gops'?",
    }


def test_an_absent_profile_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: No such file"):
        specs.read_profile(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("target", ["device.yaml", {"profile": "device.yaml", "threads": [1, 2]}])
def test_a_pipeline_names_its_profile_from_its_own_folder(
    tmp_path: Path, tiny_document: dict[str, Any], target: Any
) -> None:
    written(tmp_path, SMALL)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({**tiny_document, "target": target}))
    spec = specs.read(tmp_path / "pipeline.yaml")
    assert spec.target.profile == DeviceProfile.model_validate(SMALL)
    assert spec.target.usable_threads == (1,)  # it has one core
    assert specs.parse(yaml.safe_load(yaml.safe_dump(spec.to_json())), "again") == spec


def test_a_target_named_beside_the_pipeline_goes_first(tmp_path: Path, tiny_document: dict[str, Any]) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**tiny_document, "target": {"threads": [1, 2]}}))
    spec = specs.read(path, DEVICES / "pi5.yaml")
    assert spec.target.profile is not None
    assert (spec.target.profile.name, spec.target.threads) == ("Raspberry Pi 5, 8 GB", (1, 2))


def test_a_thread_count_that_the_device_lacks_is_a_problem(
    tmp_path: Path, tiny_document: dict[str, Any]
) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**tiny_document, "target": {"threads": [2]}}))
    with pytest.raises(SpecError) as caught:
        specs.read(path, written(tmp_path, SMALL))
    assert "must name a count that the device has (1), but got 2" in caught.value.problems[0]
