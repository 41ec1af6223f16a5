"""Real file systems that are small or read-only; they need root, and say so where there is none."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A file system in memory of its own."""

    path: Path

    def fill(self) -> None:
        """Leave no byte."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        """Leave room again."""
        (self.path / "ballast").unlink()

    def write_protect(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)


@pytest.fixture
def mount(tmp_path: Path, as_root: None) -> Iterator[Callable[..., Disk]]:
    """Mounts a disk with these options; skips where the system does not let even root."""
    mounted: list[Path] = []

    def made(options: str = "size=4m") -> Disk:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"no tmpfs may be mounted here: {done.stderr.decode().strip()}")
        mounted.append(path)
        return Disk(path)

    yield made
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
