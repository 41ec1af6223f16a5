"""Worker environments, made of wheels that are made on the spot: no network is asked."""

import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pareflow.compiler import environment
from pareflow.compiler.environment import WorkerEnvironment, last_lines, pins
from pareflow.errors import MissingExtraError
from tests.processes import wait_for

MAKER = """
import sys
from pathlib import Path
from pareflow.compiler import environment

environment.lock_folders = lambda: [Path(sys.argv[1])]
print(environment.WorkerEnvironment("tiny").ensure())
"""


def write_wheel(folder: Path, name: str, version: str) -> None:
    """The smallest distribution: a module that says its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of lock files; pip finds the wheels beside it, and nothing else."""
    folder = tmp_path / "locks"
    folder.mkdir()
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(environment, "lock_folders", lambda: [folder])
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "environments"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def tiny(locks: Path, tmp_path: Path) -> WorkerEnvironment:
    """An environment of one distribution, not made yet."""
    write_wheel(tmp_path / "wheels", "tiny", "1.5+cpu")
    (locks / "tiny.txt").write_text("# a comment\ntiny==1.5\n")
    return WorkerEnvironment("tiny")


class Makers:
    """Processes that make the environment `tiny`."""

    def __init__(self, locks: Path) -> None:
        self._locks, self.running = locks, list[subprocess.Popen[str]]()

    def start(self) -> "subprocess.Popen[str]":
        root = str(Path(__file__).parents[2])
        self.running.append(
            subprocess.Popen(
                [sys.executable, "-c", MAKER, str(self._locks)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": root},
                start_new_session=True,
            )
        )
        return self.running[-1]


@pytest.fixture
def makers(locks: Path) -> Iterator[Makers]:
    made = Makers(locks)
    yield made
    for process in made.running:
        process.kill()
        process.communicate()


def version_in(python: Path) -> str:
    command = [str(python), "-c", "import tiny; print(tiny.version)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_two_makers_at_once_build_once(tiny: WorkerEnvironment, makers: Makers) -> None:
    """And what was built is used again: nothing asks the wheel, which is gone by then."""
    first, second = makers.start(), makers.start()
    outputs = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert outputs == [f"{tiny.python}\n"] * 2
    assert version_in(tiny.python) == "1.5+cpu"
    made = tiny.folder.stat()
    for wheel in Path(os.environ["PIP_FIND_LINKS"]).iterdir():
        wheel.unlink()
    assert tiny.ensure() == tiny.python
    assert tiny.folder.stat() == made
    assert sorted(path.name for path in tiny.folder.parent.iterdir()) == [
        tiny.folder.name,
        f"{tiny.folder.name}.lock",
    ]


def test_killed_maker_leaves_a_half_that_the_next_throws_away(
    tiny: WorkerEnvironment, makers: Makers
) -> None:
    doomed = makers.start()
    wait_for(tiny.folder, doomed)
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.wait()
    assert not tiny.built
    (tiny.folder / "left").touch()
    assert version_in(tiny.ensure()) == "1.5+cpu"
    assert not (tiny.folder / "left").exists()


@pytest.mark.slow
def test_one_whose_python_is_gone_is_made_again(tiny: WorkerEnvironment, tmp_path: Path) -> None:
    """As after an update that takes the old one away: the environment links to it."""
    tiny.ensure()
    tiny.python.unlink()
    tiny.python.symlink_to(tmp_path / "gone")
    assert not tiny.built
    assert version_in(tiny.ensure()) == "1.5+cpu"


def test_one_that_cannot_be_built_offline_says_the_way_out(
    tiny: WorkerEnvironment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(MissingExtraError) as caught:
        tiny.ensure()
    assert "No matching distribution found for tiny==1.5" in caught.value.found
    assert f"pip download -r {tiny.lock} -d wheels" in caught.value.remedy
    assert "PIP_NO_INDEX=1 and PIP_FIND_LINKS=wheels" in caught.value.remedy
    assert "python -m pareflow.compiler.prepare tiny" in caught.value.remedy
    assert not tiny.built


def test_pins_that_pip_passes_over_are_found_out(tiny: WorkerEnvironment, locks: Path) -> None:
    """A marker that holds nowhere: pip is content, and installs nothing."""
    (locks / "tiny.txt").write_text('tiny==1.5; python_version < "3"\n')
    with pytest.raises(MissingExtraError, match="pip installed tiny absent where the lock says otherwise"):
        tiny.ensure()
    assert not tiny.built


ELSEWHERE = "cp27-none-win32.macosx_10_5_ppc"


def test_platform_without_wheels_is_told_before_anything_is_installed(
    tiny: WorkerEnvironment, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from packaging.tags import sys_tags

    (locks / "tiny.txt").write_text(f"# a head\n# wheels of tiny: {ELSEWHERE}\ntiny==1.5\n")
    here = next(sys_tags())
    said = f"there is no wheel of tiny for {here.interpreter} on {here.platform}"
    assert tiny.unfit() == said
    with pytest.raises(MissingExtraError, match=f"it is not: {said}"):
        tiny.ensure()
    assert not tiny.folder.exists()
    (locks / "tiny.txt").write_text(
        f"# wheels of tiny: {ELSEWHERE}.any\n# wheels of more: {here}\ntiny==1.5\n"
    )
    assert tiny.unfit() == said  # cp27-none-any is of another Python
    (locks / "tiny.txt").write_text(f"# wheels of tiny: py3-none-any\n# wheels of more: {here}\ntiny==1.5\n")
    assert tiny.unfit() is None
    tiny.python.parent.mkdir(parents=True)
    for file in (tiny.python, tiny.folder / environment.MARKER):
        file.touch()
    (locks / "tiny.txt").write_text(f"# wheels of tiny: {ELSEWHERE}\ntiny==1.5\n")
    assert tiny.unfit() is None  # it is there, wherever it came from


@pytest.mark.parametrize(
    ("platform", "lacking"),
    [
        ("manylinux_2_28_x86_64", {}),
        ("macosx_14_0_arm64", {}),
        ("manylinux_2_28_aarch64", {"litert": "litert-converter", "coreml": "coremltools"}),
        (
            "macosx_14_0_x86_64",
            {
                "litert": "litert-converter, torch",
                "executorch": "executorch",
                "tvm": "apache-tvm, apache-tvm-ffi",
                "coreml": "torch",
            },
        ),
    ],
)
def test_locks_tell_where_their_wheels_are(
    platform: str, lacking: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the index listed them on 2026-11-28."""
    from packaging import tags

    monkeypatch.setenv(environment.VARIABLE, str(tmp_path))
    system, _, machine = re.fullmatch(r"([a-z]+)_(\d+_\d+)_(\w+)", platform).groups()  # type: ignore[union-attr]
    older = {"macosx": ("_12_0", "_11_0", "_10_15"), "manylinux": ("_2_27", "_2_24", "1")}[system]
    known = [platform, *(f"{system}{version}_{machine}" for version in older)]
    kinds = [("cp312", "cp312"), ("cp312", "none"), ("py3", "none")]
    here = [tags.Tag(*kind, name) for name in known for kind in kinds]
    monkeypatch.setattr(tags, "sys_tags", lambda: iter(here))
    for name in ("litert", "executorch", "coreml", "tvm"):
        found = WorkerEnvironment(name).unfit()
        words = lacking.get(name)
        assert found == (words and f"there is no wheel of {words} for cp312 on {platform}")


def test_absent_lock_is_told_with_where_it_was_looked_for(locks: Path) -> None:
    with pytest.raises(MissingExtraError, match=f"there is none at {locks / 'none.txt'}"):
        WorkerEnvironment("none").ensure()


def test_folder_that_cannot_be_written_is_told(
    tiny: WorkerEnvironment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(MissingExtraError, match=r"cannot \(Not a directory\)\. Name another with PAREFLOW_"):
        tiny.ensure()


def test_digest_is_of_the_pins_and_not_of_the_comments(tiny: WorkerEnvironment, locks: Path) -> None:
    before = tiny.digest
    (locks / "tiny.txt").write_text("Tiny == 1.5+cpu  # where it is from\n".replace(" == ", "=="))
    assert tiny.digest == before
    (locks / "tiny.txt").write_text("tiny==1.6\n")
    assert tiny.digest != before


def test_pins_are_read_with_names_as_pip_compares_them() -> None:
    text = "# head\nJinja2==3.1.6\ntyping_extensions==4.16.0\nruamel.yaml==0.19.1\ntorch==2.13.0+cpu\n\n"
    assert pins(text) == {
        "jinja2": "3.1.6",
        "typing-extensions": "4.16.0",
        "ruamel-yaml": "0.19.1",
        "torch": "2.13.0",
    }


def test_last_lines_are_those_that_say_something() -> None:
    assert last_lines("one\n\n two \nthree\nfour\n\n") == "two / three / four"
    assert last_lines("\n") == "no word was said"


def test_every_worker_backend_has_its_lock_which_pins_each_distribution() -> None:
    from pareflow.catalog import BACKENDS
    from pareflow.compiler.worker import WorkerBackend

    known = [cls for cls in BACKENDS.values() if issubclass(cls, WorkerBackend)]
    found = [cls for cls in known if cls.__module__.startswith("pareflow.")]  # tests' own have none
    assert found
    for cls in found:
        lines = cls.environment().lock.read_text().splitlines()
        wanted = [line for line in lines if line.partition("#")[0].strip()]
        assert wanted
        assert all("==" in line for line in wanted)
        told = environment._WHEELS.findall("\n".join(lines))
        assert told
        assert {name for name, _ in told} <= pins("\n".join(lines)).keys()
