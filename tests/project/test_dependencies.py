"""What is installed: every requirement has one version, pinned in the lock, for every image and extra."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!_-]*")


def pins(path: Path) -> list[str]:
    """The lines of a lock that are no comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def locked(checkout: Path) -> dict[str, str]:
    """The version of every distribution in requirements.lock."""
    split = (line.split("==") for line in pins(checkout / "requirements.lock"))
    return {canonicalize_name(name): version for name, version in split}


def asked_for(checkout: Path) -> Iterator[tuple[str, Requirement]]:
    """Every requirement that a file of ours states, with where it stands."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        yield "pyproject.toml", Requirement(text)
    for extra, texts in project["optional-dependencies"].items():
        for text in texts:
            yield f"the extra {extra}", Requirement(text)
    for path in sorted((checkout / "infra" / "requirements").glob("*.txt")):
        for line in pins(path):
            yield path.name, Requirement(line)


def test_every_line_of_every_lock_is_one_version(checkout: Path) -> None:
    locks = [checkout / "requirements.lock", *sorted((checkout / "infra" / "environments").glob("*.txt"))]
    assert len(locks) > 4
    for path in locks:
        lines = [line for line in pins(path) if not line.startswith("--")]
        assert lines
        assert [line for line in lines if not PIN.fullmatch(line)] == [], path
        names = Counter(canonicalize_name(line.split("==")[0]) for line in lines)
        assert [name for name, count in names.items() if count > 1] == [], path


def test_the_lock_holds_every_requirement_in_a_version_that_it_allows(checkout: Path) -> None:
    versions = locked(checkout)
    requirements = list(asked_for(checkout))
    assert len(requirements) > 60
    for place, requirement in requirements:
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{place}: {requirement.name} is not in requirements.lock"
        allowed = requirement.specifier.contains(version, prereleases=True)
        assert allowed, f"{place}: {requirement} is {version}"


def test_every_file_that_a_requirement_is_said_to_be_for_is_there(checkout: Path) -> None:
    comments = re.findall(r"# (.*)", (checkout / "pyproject.toml").read_text())
    files = re.findall(r"\b(?:pareflow|flows|tasks|tests|configs|docs)/[\w./]*\w", "\n".join(comments))
    assert len(files) > 30
    assert [file for file in files if not (checkout / file).exists()] == []


def test_what_serves_has_what_our_own_workloads_process_with(checkout: Path) -> None:
    """Else the golden samples of a text checkpoint are not repeated there, and the server never starts."""
    sources = [path for folder in ("pareflow", "configs") for path in (checkout / folder).rglob("*.py")]
    texts = [path.read_text() for path in sources]
    said = [found for text in texts for found in re.findall(r"serving_requires.*= \((.*)\)", text)]
    asked = {name for names in said for name in re.findall(r'"([\w.-]+)"', names)}
    assert {"tokenizers", "pillow"} <= asked
    installed = {Requirement(line).name for line in pins(checkout / "infra" / "requirements" / "serving.txt")}
    assert asked <= installed


def test_what_serves_needs_neither_torch_nor_prefect(checkout: Path) -> None:
    """The image `serving` holds infra/requirements/serving.txt, and pareflow without its dependencies."""
    code = (
        "import sys\n"
        "import flows.cli, flows.commands, tasks.serving, tasks.promotion\n"
        "import pareflow.serving.server, pareflow.serving.app, pareflow.serving.model\n"
        "absent = ('torch', 'prefect', 'onnx', 'sklearn', 'evaluate', 'nncf')\n"
        "print([name for name in absent if name in sys.modules])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.slow
@pytest.mark.production
def test_no_locked_version_has_a_known_vulnerability(checkout: Path) -> None:
    """Where no database of advisories is reachable, the check of the lock above is what there is."""
    audit = shutil.which("pip-audit") or shutil.which("pip-audit", path=str(Path(sys.executable).parent))
    if audit is None:
        pytest.skip("pip-audit is not installed")
    command = [audit, "--requirement", str(checkout / "requirements.lock"), "--no-deps", "--disable-pip"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout)["dependencies"] if done.stdout else []
    audited = [dependency for dependency in told if "vulns" in dependency]
    if not audited:  # it exits with 0 all the same
        pytest.skip("no database of advisories is reachable")
    assert [dependency for dependency in audited if dependency["vulns"]] == []
