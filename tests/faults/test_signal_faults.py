"""What a runtime does to its process must not end it when a signal comes."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pareflow.network import Form

pytest.importorskip("openvino")

FREED_ELSEWHERE = """
import gc, signal, sys, threading
from pathlib import Path
from pareflow.compiler import OpenVino

sessions = [OpenVino().load(Path(sys.argv[1]))]
freeing = threading.Thread(target=lambda: (sessions.clear(), gc.collect()))
freeing.start()
freeing.join()
signal.signal(signal.SIGTERM, lambda *_: print("told"))
signal.raise_signal(signal.SIGTERM)
"""

ASKED_AT_ONCE = """
import threading
from pareflow.network import openvino_core

together, cores = threading.Barrier(16), []

def ask():
    together.wait()
    cores.append(openvino_core())

threads = [threading.Thread(target=ask) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len({id(core) for core in cores}))
"""


def test_threads_that_ask_at_once_get_the_only_core() -> None:
    """Else one of two is freed, by some thread or other."""
    done = subprocess.run([sys.executable, "-c", ASKED_AT_ONCE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr


def test_a_session_that_another_thread_frees_leaves_signals_as_they_are(
    forms: Callable[[str], Mapping[Form, Path]],
) -> None:
    """A server frees the version before in a thread, and is told to end by SIGTERM."""
    command = [sys.executable, "-c", FREED_ELSEWHERE, str(forms("images")["openvino"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
