"""The two halves of a split network: made, written, opened, and run as two processes.

    python -m pareflow.serving.halves server FOLDER --port 8000
    python -m pareflow.serving.halves device FOLDER --server http://HOST:8000 inputs.npz outputs.npz

A half is a folder: half.json (its backend, what it takes, what crosses) and artifact/.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pareflow  # noqa: F401  (fills the catalog)
from pareflow import network
from pareflow.compiler.backend import Backend, backend_of
from pareflow.errors import InputError, PareflowError
from pareflow.measuring.arena import write_feeds
from pareflow.runtime.placement import ON_DEVICE, ON_SERVER
from pareflow.runtime.remote import RemoteSession, SplitSession, encode, serve
from pareflow.runtime.splitting import Cut, cuts, split, tensors_of, worth_measuring
from pareflow.session import Session
from pareflow.variant import Step
from pareflow.workload import Arrays

FEEDS_BYTES = 2**28
"""The inputs of all halves are kept in one file of at most about this size."""


@dataclass(frozen=True, slots=True)
class Half:
    """One side of a cut, as it lies on disk; `artifact` is None where nothing runs on that side."""

    backend: Step
    takes: tuple[str, ...]
    crossing: tuple[str, ...]
    artifact: bool

    def write(self, folder: Path) -> None:
        document = {
            "backend": self.backend.to_json(),
            "takes": list(self.takes),
            "crossing": list(self.crossing),
            "artifact": self.artifact,
        }
        (folder / "half.json").write_text(json.dumps(document, indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Half":
        """Raises: InputError."""
        try:
            document = json.loads((folder / "half.json").read_text())
            takes, crossing = (tuple(document[name]) for name in ("takes", "crossing"))
            return cls(Step.from_json(document["backend"]), takes, crossing, bool(document["artifact"]))
        except (OSError, ValueError, LookupError) as error:
            raise InputError(
                f"{folder} must hold a half of a network", f"{error}", "`pareflow split --write` makes both"
            ) from error

    def open(self, folder: Path) -> Session | None:
        if not self.artifact:
            return None
        backend = backend_of(self.backend)
        return backend.load(folder / "artifact")


def write_all(source: Path, batches: Sequence[Arrays], backend: Backend, most: int, into: Path) -> None:
    """Both halves of each cut that is worth measuring, and the whole; what crosses, as feeds for the arena.

    `source` holds the network in the form `onnx`; `batches` are real inputs, of one size but the last, which
    has another. `cuts.json` has a row per cut: the layer, what crosses, mean bytes up and down.
    """
    model = network.load("onnx", source)
    seen = tensors_of(model, batches)
    found = cuts(model, seen)
    *equal, _ = seen
    outputs = [value.name for value in model.graph.output]
    inputs = [name for name in seen[0] if name in batches[0]]
    sizes = {cut: _bytes(equal, cut.crossing) for cut in found}
    chosen = worth_measuring(sizes, _bytes(equal, inputs), most)
    down = _bytes(equal, outputs)
    rows = [
        {"layer": ON_DEVICE, "crossing": [], "up_bytes": 0, "down_bytes": 0},
        {"layer": ON_SERVER, "crossing": inputs, "up_bytes": _bytes(equal, inputs), "down_bytes": down},
    ]
    for number, cut in enumerate(chosen, start=len(rows)):
        _write(model, cut, backend, into / f"{number:02}")
        rows.append(
            {"layer": cut.layer, "crossing": list(cut.crossing), "up_bytes": sizes[cut], "down_bytes": down}
        )
    _write_whole(source, inputs, backend, into)
    _write_feeds(equal, inputs, chosen, into / "feeds.npz")
    left_out = [{"layer": cut.layer, "bytes": sizes[cut] + down} for cut in found if cut not in chosen]
    (into / "cuts.json").write_text(json.dumps({"rows": rows, "left_out": left_out}, indent=1))


def _bytes(seen: Sequence[Arrays], names: Sequence[str]) -> float:
    """What one message of these tensors takes, in the mean."""
    return float(np.mean([len(encode({name: tensors[name] for name in names})) for tensors in seen]))


def _write(model: Any, cut: Cut, backend: Backend, into: Path) -> None:
    head, tail = split(model, cut)
    for side, graph in (("device", head), ("server", tail)):
        source = into / f"{side}-source"
        source.mkdir(parents=True)
        network.save(graph, "onnx", source)
        takes = [value.name for value in graph.graph.input]
        _compiled(source, backend, Half(backend.step, tuple(takes), cut.crossing, True), into / side)
        shutil.rmtree(source)


def _write_whole(source: Path, inputs: Sequence[str], backend: Backend, into: Path) -> None:
    """Both simple ways: rows 0 and 1."""
    names = tuple(inputs)
    _compiled(source, backend, Half(backend.step, names, (), True), into / "00" / "device")
    _compiled(source, backend, Half(backend.step, names, names, True), into / "01" / "server")
    for half, folder in (
        (Half(backend.step, (), (), False), into / "00" / "server"),
        (Half(backend.step, names, names, False), into / "01" / "device"),
    ):
        folder.mkdir()
        half.write(folder)


def _compiled(source: Path, backend: Backend, half: Half, into: Path) -> None:
    (into / "artifact").mkdir(parents=True)
    backend.compile(source, into / "artifact")
    half.write(into)


def _write_feeds(seen: Sequence[Arrays], inputs: Sequence[str], chosen: Sequence[Cut], path: Path) -> None:
    """One file for all contestants: each takes of a batch what it reads. The inputs come first."""
    names = list(dict.fromkeys([*inputs, *(name for cut in chosen for name in cut.crossing)]))
    batches = [{name: tensors[name] for name in names} for tensors in seen]
    each = sum(array.nbytes for array in batches[0].values())
    write_feeds(batches[: max(1, FEEDS_BYTES // max(each, 1))], path)


def session_of(device: Path, url: str | None) -> SplitSession:
    """The device's half in this process and the server's behind `url`, as one. Raises: InputError."""
    half = Half.read(device)
    if half.crossing and url is None:
        raise InputError(
            f"{device} is half of a network and needs its server", "none is named", "Name it with --server"
        )
    tail = RemoteSession(url) if half.crossing and url is not None else None
    return SplitSession(half.open(device), tail, half.crossing)


def _serve(folder: Path, host: str, port: int) -> None:
    half = Half.read(folder)
    session = half.open(folder)
    if session is None:
        raise InputError("a server needs a half that runs", f"nothing of {folder} does", "Run the device's")
    serve(session, half.takes, lambda bound: print(f"http://{host}:{bound}", flush=True), host, port)


def main(arguments: Sequence[str] | None = None) -> int:
    """One of the two processes. The server prints its address once it listens."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.side == "server":
            _serve(asked.folder, asked.host, asked.port)
            return 0
        with np.load(asked.inputs, allow_pickle=False) as stored:
            feeds = {name: stored[name] for name in stored.files}
        with closing(session_of(asked.folder, asked.server)) as session:
            asked.outputs.write_bytes(encode(session.run(feeds)))
    except PareflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pareflow.serving.halves", description=__doc__)
    sides = parser.add_subparsers(dest="side", required=True)
    server = sides.add_parser("server", help="serve the tail")
    device = sides.add_parser("device", help="run the head, and ask the server for the rest")
    for side in (server, device):
        side.add_argument("folder", type=Path)
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=0)
    device.add_argument("--server", help="http://HOST:PORT, as the server printed it")
    device.add_argument("inputs", type=Path, help=".npz of the network's inputs by name")
    device.add_argument("outputs", type=Path, help=".npz to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
