"""The worker's side of the pipe: says who it is, then answers one request after another until the pipe ends.

It is started by `BOOT` with its name and this folder, which makes a package of that alone: its files may be
called like the runtimes that they import, and nothing else of pareflow is seen. Whatever is printed goes to
stderr. Where pareflow dies the worker ends at once, also amid a request. Ctrl-C in a terminal and a
service's SIGTERM reach the worker too, which leaves it to pareflow when both end.
"""

import importlib
import os
import select
import signal
import sys
import threading
import traceback
from typing import Any, BinaryIO

import numpy as np

from . import wire

BOOT = (
    "import sys, types; package = types.ModuleType('workers'); package.__path__ = sys.argv[2:]; "
    "sys.modules['workers'] = package; from workers import serve; serve.main(sys.argv[1])"
)


class UnsupportedError(Exception):
    """The runtime lacks an operator; says which, and at which node where that is known."""

    def __init__(self, operator: str, node: str | None, message: str) -> None:
        super().__init__(message)
        self.operator, self.node = operator, node


def main(name: str) -> None:
    """Serve the runtime of `workers/<name>.py` on stdin and stdout."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = _pipes()
    threading.Thread(target=_end_with, args=(requests.fileno(),), daemon=True).start()
    try:
        runtime = importlib.import_module(f"{__package__}.{name}")
        hello = {"protocol": wire.PROTOCOL, "name": name, "versions": runtime.versions()}
    except Exception as error:
        traceback.print_exc()
        wire.write(answers, {"error": _described(error)}, {})
        return
    wire.write(answers, hello, {})
    loaded: list[Any] = []
    while True:
        try:
            header, arrays = wire.read(requests)
        except wire.BrokenPipe:
            return  # pareflow has done with us
        try:
            wire.write(answers, *_answer(runtime, loaded, header, arrays))
        except wire.BrokenPipe:
            return
        except Exception as error:  # also of outputs that cannot be sent, of which nothing was sent yet
            traceback.print_exc()
            wire.write(answers, {"error": _described(error)}, {})


def _answer(
    runtime: Any, loaded: list[Any], header: dict[str, Any], arrays: dict[str, np.ndarray]
) -> wire.Message:
    """`compile` and `load` go to the runtime's module, `run` and `ran` to what was loaded."""
    match header["call"]:
        case "run":
            return {}, loaded[0].run(arrays)
        case "ran":
            return {"ran": loaded[0].ran()}, {}
        case "load":
            loaded[:] = [runtime.load(**header["settings"])]
            return {}, {}
        case "compile":
            return {"compiled": runtime.compile(**header["settings"])}, {}
    raise ValueError(f"a worker is asked to compile, load, run, or tell what ran, not to {header['call']!r}")


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """stdin and stdout for the protocol alone: to all others stdin is empty, and stdout is stderr."""
    sys.stdout.flush()
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb", buffering=0), os.fdopen(answers, "wb")


def _end_with(pipe: int) -> None:
    """End this process when the other end of the pipe is closed."""
    poll = select.poll()
    poll.register(pipe, 0)  # nothing but the hang-up
    poll.poll()
    os._exit(0)


def _described(error: Exception) -> dict[str, Any]:
    last = traceback.extract_tb(error.__traceback__)[-1]
    memory = isinstance(error, MemoryError)  # of numpy too, which has a class of its own for it
    return {
        "type": "MemoryError" if memory else type(error).__name__,
        "message": str(error)[:2000],
        "where": f"{os.path.basename(last.filename)}:{last.lineno}",  # noqa: PTH119
        "operator": getattr(error, "operator", None),
        "node": getattr(error, "node", None),
    }
