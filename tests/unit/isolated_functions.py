"""What `test_isolation.py` and `test_nursery.py` run in child processes."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from pareflow.errors import SpecError, StepFailedError, TransientError
from pareflow.hardware.device import lock_folder
from pareflow.store import Store


class OwnError(StepFailedError):
    """A class that the parent cannot look up."""


def double(x: list[int]) -> dict[str, Any]:
    return {"doubled": [2 * value for value in x], "pid": os.getpid(), "group": os.getpgid(0)}


def environment(names: list[str]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def read(path: str) -> str:
    return Path(path).read_text()


def talk() -> None:
    print("from Python")
    os.write(1, b"from a native library\n")
    sys.stderr.write("a warning\n")


def fail(kind: str) -> None:
    errors: dict[str, Exception] = {
        "foreign": ZeroDivisionError("by zero"),
        "own": OwnError("law", "finding", "way out"),
        "transient": TransientError("law", "finding", "way out"),
        "spec": SpecError("a.yaml", ["one", "two"]),
        "verbose": ValueError(f"begin {'x' * 100_000}\n{'y' * 100_000} end"),
        "memory": MemoryError(),
        "native memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 TB"),
    }
    raise errors[kind]


def segfault() -> None:
    print("about to read address 0", flush=True)
    ctypes.string_at(0)


def litter(told: str) -> None:
    """Leave a temporary folder, and one of a process of its own; write their paths, then die."""
    make = "import tempfile; print(tempfile.mkdtemp())"
    theirs = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True).stdout
    Path(told).write_text(f"{tempfile.mkdtemp()}\n{theirs}")
    os.kill(os.getpid(), signal.SIGKILL)


def lasting_folders() -> list[str]:
    """Where device locks lie, and torch.compile's kernels."""
    return [str(lock_folder()), os.environ["TORCHINDUCTOR_CACHE_DIR"]]


def leave(status: int) -> None:
    os._exit(status)


def hoard(mib: int) -> int:
    return len(bytearray(mib * 2**20))


def hang(begun: str) -> None:
    """Write the ids of this process and of one of its own children, then sleep."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    partial = Path(begun + ".partial")
    partial.write_text(f"{os.getpid()} {child.pid}")
    partial.rename(begun)
    time.sleep(1000)


def answer_with_a_set() -> set[int]:
    return {1}


def read_descriptor(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 100).decode()


def has_imported(name: str) -> bool:
    return name in sys.modules


def ancestors() -> list[int]:
    """The ids of the parent, and of its parent."""
    return [parent.pid for parent in psutil.Process().parents()[:2]]


def multiply(size: int, threads: int) -> dict[str, Any]:
    """Whether a product of ones is what it must be, computed by torch on so many threads."""
    import torch

    torch.set_num_threads(threads)
    product = torch.ones(size, size) @ torch.ones(size, size)
    return {"right": bool((product == size).all()), "threads": torch.get_num_threads()}


def wait_for(root: str, key: str) -> str:
    """Say so once the key of a store is free."""
    with Store(Path(root)).lock(key):
        return "it is free"
