"""Split inference: both halves of each cut as processes over HTTP, and what choosing a cut gives."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import recipes
from claims import Claim, main

from pareflow.runtime.placement import ON_DEVICE, ON_SERVER, Link
from pareflow.serving.halves import session_of
from pareflow.stages import splitting
from pareflow.stages.run import Run
from pareflow.workload import Arrays, load

NETWORKS: tuple[tuple[str, dict[str, str], int], ...] = (
    ("digits", {}, 1000),
    ("zoo", {"architecture": "resnet18"}, 8),
)
"""The configuration, its settings, and the most cuts: of digits, all that are valid."""
LINKS = (
    Link(bandwidth_mbit=2, round_trip_ms=20, slower=8),
    Link(bandwidth_mbit=50, round_trip_ms=5, slower=8),
    Link(bandwidth_mbit=1000, round_trip_ms=1, slower=8),
)
"""A weak radio, a good one, a cable; the device is one of an eighth of this machine's speed."""
TOLERANCE = 1e-5
"""Of the largest output: graphs that are optimized in two parts round otherwise."""


def measure(quick: bool) -> Sequence[Claim]:
    """Of each network the answers of its halves, and the time of the cut that is chosen for each link."""
    networks = [("zoo", {"architecture": "resnet18"}, 2)] if quick else NETWORKS
    return [claim for name, given, most in networks for claim in _claims(name, given, most)]


def _claims(name: str, given: Mapping[str, str], most: int) -> Iterator[Claim]:
    run = recipes.run_of(name, 0, given)
    _, entry = splitting.cut(run, most)
    shown = " ".join([name, *given.values()])
    yield _same_answers(run, entry, shown)
    for link in LINKS:
        yield _gain(splitting.split(run, link, most=most), link, shown)


def _same_answers(run: Run, entry: Path, shown: str) -> Claim:
    """The largest error of any cut against the whole network, both halves processes of their own."""
    feeds = dict(load(run.spec.workload, run.folder).example(1))
    expected = session_of(entry / "00" / "device", None).run(feeds)
    folders = sorted(path for path in entry.iterdir() if path.is_dir())[1:]
    errors = [_error(_over_http(folder, feeds), expected) for folder in folders]
    note = f"of {len(folders)} ways, {errors.count(0.0)} answer the same bits"
    name = f"split, {shown}: error of halves over HTTP"
    return Claim(name, TOLERANCE, max(errors), "of the largest output", len(folders), "at most", note=note)


def _over_http(folder: Path, feeds: Arrays) -> Arrays:
    with _served(folder / "server") as url, closing(session_of(folder / "device", url)) as session:
        return session.run(feeds)


@contextmanager
def _served(half: Path) -> Iterator[str]:
    """The address of a server of a half, in a process of its own."""
    command = [sys.executable, "-m", "pareflow.serving.halves", "server", str(half)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def _error(answers: Arrays, expected: Arrays) -> float:
    pairs = [(answers[name], array) for name, array in expected.items()]
    return max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)


def _gain(document: Mapping[str, Any], link: Link, shown: str) -> Claim:
    """How many times sooner the chosen placement answers than the better of the two simple ones."""
    rows = {row["layer"]: row for row in document["placements"]}
    best = rows[document["chosen"]]["total_ms"]["estimate"]
    simple = {layer: rows[layer]["total_ms"]["estimate"] for layer in (ON_DEVICE, ON_SERVER)}
    told = ", ".join(f"{layer} {milliseconds:.3g}" for layer, milliseconds in simple.items())
    name = f"split, {shown}: {link.bandwidth_mbit:g} Mbit/s, {link.round_trip_ms:g} ms"
    note = f"{document['chosen']}: {best:.3g} ms (estimated: device and link); {told}"
    gain = min(simple.values()) / best
    return Claim(name, 1, gain, "× the better simple way", len(rows), "at least", note=note)


if __name__ == "__main__":
    main("splitting", measure)
