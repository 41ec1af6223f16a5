"""Worker environments: interpreters of their own for runtimes that cannot share pareflow's.

Each is a virtual environment made on demand from a lock file of `infra/environments/`, kept in the user's
cache and named by a digest of the lock and of the Python version. A lock's head says for which platforms the
wheels of those exist that have the fewest, so that it is known before anything is installed where it cannot
be. `PAREFLOW_ENVIRONMENTS` names another folder for them.
`python -m pareflow.compiler.prepare litert` makes one ahead of time.
"""

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pareflow.errors import MissingExtraError
from pareflow.variant import digest

VARIABLE = "PAREFLOW_ENVIRONMENTS"
MARKER = "built"
"""The file that is written last: an environment without it is half-built."""
_WHEELS = re.compile(r"^# wheels of (\S+): (\S+)$", re.MULTILINE)
"""In a lock's head: a distribution, and the tags of all its wheels together, as PEP 425 writes them."""


@dataclass(frozen=True, slots=True)
class WorkerEnvironment:
    """The environment that the lock file `<name>.txt` describes."""

    name: str

    @property
    def lock(self) -> Path:
        """The lock file. Raises: MissingExtraError."""
        found = [folder / f"{self.name}.txt" for folder in lock_folders()]
        for path in found:
            if path.is_file():
                return path
        raise MissingExtraError(
            f"the worker environment `{self.name}` needs its lock file",
            f"there is none at {' or '.join(map(str, found))}",
            "Install pareflow again",
        )

    @property
    def digest(self) -> str:
        """Names what the environment holds: the lock's pins, and the Python and system that it is for."""
        version = ".".join(platform.python_version_tuple()[:2])
        return digest(pins(self.lock.read_text()), version, sysconfig.get_platform())

    @property
    def folder(self) -> Path:
        return root() / f"{self.name}-{self.digest[:12]}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where its distributions lie."""
        version = ".".join(platform.python_version_tuple()[:2])
        return self.folder / "lib" / f"python{version}" / "site-packages"

    @property
    def built(self) -> bool:
        """Not so where the Python that it was made from is gone: it links to that."""
        return (self.folder / MARKER).is_file() and self.python.exists()

    def unfit(self) -> str | None:
        """Why it cannot be made here, as far as its lock tells of platforms; no network is asked."""
        from packaging.tags import parse_tag, sys_tags

        try:
            text = self.lock.read_text()
        except MissingExtraError as error:
            return error.found
        if self.built:
            return None
        here = list(sys_tags())
        lacking = [name for name, tags in _WHEELS.findall(text) if parse_tag(tags).isdisjoint(here)]
        if not lacking:
            return None
        return f"there is no wheel of {', '.join(lacking)} for {here[0].interpreter} on {here[0].platform}"

    def ensure(self) -> Path:
        """The environment's interpreter; the environment is made if it is not there. Takes minutes.

        Whoever comes second waits for the first. A killed maker leaves what the next one throws away; pip's
        own cache keeps what was downloaded. Raises: MissingExtraError.
        """
        if not self.built:
            with _locked(self.folder) as descriptor:
                if not self.built:
                    self._make(descriptor)
        return self.python

    def _make(self, descriptor: int) -> None:
        if reason := self.unfit():
            raise self._unbuildable(reason)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run([sys.executable, "-m", "venv", str(self.folder)], descriptor)
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        self._run([*pip, "install", "--requirement", str(self.lock)], descriptor)
        installed = self._run([*pip, "freeze", "--all"], descriptor)
        self._check(pins(installed))
        partial = self.folder / f"{MARKER}.partial"
        partial.write_text(installed)
        partial.rename(self.folder / MARKER)

    def _run(self, command: Sequence[str], descriptor: int) -> str:
        """What a command prints. It holds the lock too, so that it does not outlive its maker unseen."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(descriptor,),
            env={**os.environ, "PYTHONNOUSERSITE": "1"},
            check=False,
        )
        if done.returncode != 0:
            raise self._unbuildable(last_lines(done.stdout))
        return done.stdout

    def _check(self, installed: dict[str, str]) -> None:
        wanted = pins(self.lock.read_text())
        wrong = [name for name, version in wanted.items() if installed.get(name) != version]
        if wrong:
            shown = ", ".join(f"{name} {installed.get(name, 'absent')}" for name in wrong)
            raise self._unbuildable(f"pip installed {shown} where the lock says otherwise")

    def _unbuildable(self, found: str) -> MissingExtraError:
        return MissingExtraError(
            f"the worker environment `{self.name}` must be installable from its lock file",
            f"it is not: {found}",
            f"Without a network, fetch the wheels elsewhere (`pip download -r {self.lock} -d wheels`), set "
            "PIP_NO_INDEX=1 and PIP_FIND_LINKS=wheels, and run `python -m pareflow.compiler.prepare "
            f"{self.name}`; or copy {self.folder} from a like machine to that place",
        )


def lock_folders() -> list[Path]:
    """Where lock files may lie: in the checkout, else where the wheel put them."""
    return [
        Path(__file__).parents[2] / "infra" / "environments",
        *(
            Path(sysconfig.get_path("data", scheme)) / "share" / "pareflow" / "environments"
            for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
        ),
    ]


def root() -> Path:
    """The folder of all worker environments."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pareflow" / "environments"


def pins(requirements: str) -> dict[str, str]:
    """The version of each `name==version` line, names normalized, without what a build is for (`+cpu`)."""
    lines = (line.partition("#")[0].strip().partition("==") for line in requirements.splitlines())
    found = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in lines if version}
    return {name: version.partition("+")[0] for name, version in found.items()}


def last_lines(text: str, count: int = 3) -> str:
    """The last lines that say something, as one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-count:]) or "no word was said"


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the environment alone; the kernel frees it when its last holder ends.

    Raises: MissingExtraError.
    """
    path = folder.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise MissingExtraError(
            "worker environments need a folder that can be written",
            f"{path.parent} cannot ({error.strerror})",
            f"Name another with {VARIABLE}",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
