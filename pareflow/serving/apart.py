"""A packaged model whose network runs in a process of its own: a challenger that nothing is known of yet.

A crash or a hang of its runtime costs that process and no more (law 7), and it computes when nobody else
wants to. Its processing stays here: that is Python, whose errors are caught. A request crosses a pipe.
"""

import sys
from pathlib import Path

import pareflow
from pareflow.compiler import workers
from pareflow.compiler.worker import Worker, WorkerSession
from pareflow.serving.model import PackagedModel
from pareflow.session import Session

_BOOT = (
    "import os, sys, types; os.nice(10); sys.path.insert(0, sys.argv[3]); "
    "package = types.ModuleType('workers'); package.__path__ = sys.argv[1:3]; "
    "sys.modules['workers'] = package; from workers import serve; serve.main('packaged')"
)
_FOLDERS = (Path(workers.__path__[0]), Path(__file__).parent, Path(str(pareflow.__file__)).parents[1])


class ModelApart(PackagedModel):
    """A package, opened; its sessions are processes, which are added to `begun`: who gives up on opening it
    can end them. Raises: CrashedError, StepFailedError; InputError."""

    def __init__(self, folder: Path, begun: list[Worker]) -> None:
        self._workers = begun
        super().__init__(folder)

    def load_session(self) -> Session:
        worker = Worker("packaged", Path(sys.executable), ("-P", "-c", _BOOT, *_FOLDERS))
        self._workers.append(worker)
        worker.call("load", artifact=str(self._folder))
        return WorkerSession(worker)

    def end(self) -> None:
        """End its processes, whatever they do: who waits for one is told that it died."""
        for worker in self._workers:
            worker.kill()
