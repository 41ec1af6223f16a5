"""The house: what lies where, what imports what, and what is shipped."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from pareflow import spec
from pareflow.serving import plan

PACKAGES = ("pareflow", "flows", "tasks")
HEAVY = (
    "torch",
    "onnxruntime",
    "onnx",
    "openvino",
    "nncf",
    "transformers",
    "evaluate",
    "datasets",
    "sklearn",
    "scipy",
    "mlflow",
    "prefect",
    "obstore",
    "ray",
)


@pytest.fixture(scope="module")
def project(checkout: Path) -> dict[str, Any]:
    return tomllib.loads((checkout / "pyproject.toml").read_text())


def python(code: str, checkout: Path) -> str:
    """What a fresh interpreter prints; fails with what it says on stderr."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shipped(root: Path) -> set[str]:
    """Every file of the packages, as the wheel names it."""
    files = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    return {str(path.relative_to(root)) for path in files if "__pycache__" not in path.parts}


def test_only_what_was_written_by_hand_is_tracked(checkout: Path) -> None:
    """Models and data are made; one that lies about is committed unseen."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=checkout, capture_output=True, text=True, check=True
    )
    large = {
        n: size for n in names.stdout.split("\0") if n and (size := (checkout / n).stat().st_size) > 2**18
    }
    assert not large


def test_mlflow_holds_data_files_only(checkout: Path) -> None:
    """A module there would stand in for the real mlflow."""
    assert [*(checkout / "mlflow").rglob("*.py"), *(checkout / "mlflow").rglob("*.pyc")] == []


def test_tests_are_no_packages(checkout: Path) -> None:
    """`tests/tasks/__init__.py` would hijack `import tasks`."""
    assert list((checkout / "tests").rglob("__init__.py")) == []


def test_importing_pareflow_wakes_nothing_heavy(checkout: Path) -> None:
    code = f"import sys, pareflow; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code, checkout).strip() == "[]"


def test_elsewhere_than_on_linux_the_command_says_so(checkout: Path) -> None:
    """Before it imports what only Linux has."""
    code = "import sys; sys.platform = 'darwin'; sys.modules['fcntl'] = None; import flows.cli"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: pareflow must run on Linux, but this is darwin. Use ")


def test_core_imports_whole_without_prefect_and_mlflow(checkout: Path) -> None:
    code = (
        "import sys; sys.modules['prefect'] = sys.modules['mlflow'] = None\n"
        "import importlib, json, pkgutil, pareflow\n"
        "names = [m.name for m in pkgutil.walk_packages(pareflow.__path__, 'pareflow.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print('\\n' + json.dumps(names))"
    )
    imported = json.loads(python(code, checkout).splitlines()[-1])
    assert {"pareflow.stages.optimization", "pareflow.isolation"} <= set(imported)


def test_flows_and_tasks_shadow_no_module(checkout: Path) -> None:
    """Prefect puts their folder on `sys.path` first."""
    ours = {path.stem for folder in ("flows", "tasks") for path in (checkout / folder).glob("*.py")}
    foreign = set(sys.stdlib_module_names) | packages_distributions().keys() - set(PACKAGES)
    assert ours - {"__init__"}
    assert ours & foreign == set()


def test_every_pipeline_of_configs_is_read(checkout: Path) -> None:
    paths = sorted((checkout / "configs").rglob("pipeline.yaml"))
    assert len(paths) >= 2
    for path in paths:
        reference = spec.read(path).workload
        if "file" in reference:
            assert (path.parent / reference["file"]["path"]).is_file()


def test_every_law_has_a_test(checkout: Path) -> None:
    names = [path.name for path in (checkout / "tests" / "laws").glob("test_law_*.py")]
    found = sorted(int(re.findall(r"\d+", name)[0]) for name in names)
    assert found == list(range(1, 11))


def test_the_readmes_tree_names_every_folder_and_every_file_of_the_core(checkout: Path) -> None:
    tree = (checkout / "README.md").read_text().partition("## Where things are")[2].split("```")[1]
    command = ["git", "ls-tree", "-d", "--name-only", "-z", "HEAD"]
    listed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout
    folders = {f"{name}/" for name in listed.split("\0") if name and not name.startswith(".")}
    core = {path.name for path in (checkout / "pareflow").glob("*.py")} - {"__init__.py"}
    core |= {f"{path.parent.name}/" for path in (checkout / "pareflow").glob("*/__init__.py")}
    assert {"pareflow/", "mlflow/", "session.py", "stages/"} <= folders | core
    assert (folders | core) - set(re.findall(r"\w+\.py|\w+/", tree)) == set()


def test_no_source_cites_what_the_repository_lacks(checkout: Path) -> None:
    """What lies beside a checkout cannot be looked up by whoever has it alone."""
    sources = [path for folder in (*PACKAGES, "bench", "tests") for path in (checkout / folder).rglob("*.py")]
    assert len(sources) > 300
    assert [path for path in sources if re.search(r"DESIGN\.md|\b[f]acts/", path.read_text())] == []


def test_packages_are_listed_as_they_lie_on_disk(checkout: Path, project: dict[str, Any]) -> None:
    files = [path for path in shipped(checkout) if path.endswith(".py")]
    on_disk = {".".join(Path(path).parent.parts) for path in files}
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(on_disk)


def test_wheel_holds_the_packages_whole_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(checkout / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(checkout / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped(source)


def test_every_serving_plan_is_one(checkout: Path) -> None:
    paths = sorted((checkout / "configs" / "serving").glob("*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        assert plan.read(path).chosen(), path
