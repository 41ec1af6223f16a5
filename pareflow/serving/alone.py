"""Run a bundle's runner where nothing can be imported but the standard library and what is allowed.

`python -I alone.py ALLOWED RUN_PY SEEN` self-tests. ALLOWED is a JSON list of top-level modules; SEEN gets,
as JSON, which of them were imported, and which files below RUN_PY's folder. Standard library only.
"""

import importlib.abc
import json
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from importlib.metadata import MetadataPathFinder
from pathlib import Path
from typing import Any


class Only(importlib.abc.MetaPathFinder):
    """Finds no other module, as if it were not installed; what is installed is told as ever."""

    find_distributions = staticmethod(MetadataPathFinder.find_distributions)
    """PathFinder's own, which the backport `importlib_metadata` takes away from that where it is imported."""

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        name = fullname.partition(".")[0]
        standard = name in sys.stdlib_module_names or name.startswith("_sysconfigdata_")  # and the platform
        return PathFinder.find_spec(fullname, path, target) if standard or name in self._allowed else None


def main(allowed: str, runner: str, seen: str) -> None:
    names, root = frozenset(json.loads(allowed)), Path(runner).parent
    code = {path.stem for path in (root / "code").glob("*")}
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Only(names | code)]
    sys.argv = [runner, "--self-test"]
    try:
        runpy.run_path(runner, run_name="__main__")
    finally:
        loaded = dict(sys.modules)
        files = (Path(str(getattr(module, "__file__", None))) for module in loaded.values())
        ours = sorted(str(file.relative_to(root)) for file in files if file.is_relative_to(root))
        imported = {"files": ours, "modules": sorted(names & loaded.keys())}
        Path(seen).write_text(json.dumps(imported))


if __name__ == "__main__":
    main(*sys.argv[1:])
