"""A package runs nothing that its list of files does not name: no digest would cover it. Only `tensorrt` runs
the engines that it builds for another GPU.
"""

import importlib.util
import json
import py_compile
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pareflow.errors import InputError
from pareflow.serving.model import PackagedModel, verified, write_manifest

ENGINE = "artifact/TensorrtExecutionProvider_graph_0_sm90.engine"


@pytest.fixture
def package(packaged: Callable[..., Path], tmp_path: Path) -> Path:
    """Its code lies in two files, and was imported nowhere yet."""
    ignored = shutil.ignore_patterns("manifest.json", "__pycache__")
    folder = Path(shutil.copytree(packaged("images"), tmp_path / "package", ignore=ignored))
    told = verified(folder)
    (folder / "model.json").unlink()
    code = folder / "workload" / "images.py"
    (code.parent / "beside.py").write_text(f"FOLDER = {str(tmp_path)!r}\n")
    code.write_text(f"from .beside import FOLDER\n{code.read_text()}")
    write_manifest(folder, told)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "workload/beside/__init__.py",  # would be found before beside.py
        "workload/numpy.py",
        "workload/beside.pyc",
        "workload/__pycache__/beside.py",
        "artifact/model.onnx.data",
        ENGINE,
        "more.py",
    ],
)
def test_a_file_that_was_not_packaged_is_refused(package: Path, name: str) -> None:
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"no file that was not packaged.* Remove it, and find out"):
        PackagedModel(package)


def test_an_engine_for_another_gpu_is_built_into_a_package_of_tensorrt(package: Path) -> None:
    told = package / "model.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "backend": {"tensorrt": {}}}))
    (package / ENGINE).write_bytes(b"an engine")
    verified(package)


def test_a_folder_of_such_files_behind_a_link_is_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").write_text("raise SystemExit")
    (package / "workload" / "beside").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no file that was not packaged"):
        PackagedModel(package)


def test_what_the_store_and_an_export_put_beside_it_is_not(package: Path) -> None:
    for name in ("manifest.json", "plan.yaml"):
        (package / name).write_text("{}")
    verified(package)


def test_bytecode_beside_the_code_is_not_run(package: Path, tmp_path: Path) -> None:
    """Python itself would run it, whatever the code says."""
    for name in ("images", "beside"):
        code, forged = package / "workload" / f"{name}.py", tmp_path / f"{name}.py"
        forged.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{code.read_text()}")
        py_compile.compile(
            str(forged),
            importlib.util.cache_from_source(str(code)),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    PackagedModel(package).check_golden()
    assert not (tmp_path / "ran").exists()


def test_no_bytecode_is_written_into_a_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    PackagedModel(package)
    assert list(package.rglob("*.pyc")) == []
