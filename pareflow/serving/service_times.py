"""How long batches take while all sessions are busy: what the simulation of a line is fed with."""

import itertools
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pareflow.serving.finite import allowed
from pareflow.serving.model import MISSING, PackagedModel, told
from pareflow.session import Session
from pareflow.workload import Arrays

SECONDS = 0.4
"""That each batch size is run for, at each number of sessions."""
MOST_MIB = 16
"""Of inputs that requests hold: as JSON they take several times as much."""


def measure(folder: str, sessions: Sequence[int], sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """For a process of its own: by number of sessions and batch size, the median seconds of a batch."""
    model = PackagedModel(Path(folder))
    rows = model.preprocess(model.golden_samples[:1])
    loaded = [model.session, *(model.load_session() for _ in range(max(sessions) - 1))]
    return {
        str(count): {str(size): _busy(loaded[:count], _repeated(rows, size)) for size in sizes}
        for count in sessions
    }


def feeds(folder: str, into: str, count: int, rows: int = 1, given: str | None = None) -> None:
    """For a process of its own: requests as JSON that the network takes, so many of `rows` golden samples
    each; or of the inputs that are `given` as contestants read them, so many at least if there are.

    Texts and whole numbers stay what they are: each tensor has the protocol's form.
    """
    from pareflow.measuring.contestant import read_feeds
    from pareflow.serving import protocol

    golden, missing = _golden(Path(folder), count, rows), MISSING in told(Path(folder))
    chosen = golden if given is None else _some(read_feeds(Path(given)), count, missing)
    tensors = []
    for arrays in chosen:
        answer, _ = protocol.render("feeds", "1", protocol.Request({}), arrays, missing=missing)
        tensors.append(json.loads(answer)["outputs"])
    Path(into).write_text(json.dumps(tensors))


def _golden(package: Path, count: int, rows: int) -> Iterator[Arrays]:
    model = PackagedModel(package)
    samples = itertools.cycle(model.golden_samples)
    for _ in range(count):
        yield model.preprocess(list(itertools.islice(samples, rows)))


def _some(batches: Sequence[Arrays], least: int, missing: bool) -> Sequence[Arrays]:
    """Those that JSON can hold, NaN as null where numbers may be `missing`; no more than `MOST_MIB`, but
    `least` whatever their size."""
    held = partial(allowed, missing=missing)
    batches = [batch for batch in batches if all(map(held, batch.values()))] or batches
    sizes = np.cumsum([sum(array.nbytes for array in batch.values()) for batch in batches])
    return batches[: max(least, int((sizes <= MOST_MIB * 2**20).sum()))]


def _repeated(rows: Arrays, size: int) -> Arrays:
    return {name: np.repeat(array, size, axis=0) for name, array in rows.items()}


def _busy(sessions: Sequence[Session], batch: Arrays) -> float:
    """The median over all sessions, which work at the same time."""
    times: list[float] = []
    stop = time.perf_counter() + SECONDS

    def work(session: Session) -> None:
        session.run(batch)  # some runtimes compile for the shape
        while time.perf_counter() < stop:
            began = time.perf_counter()
            session.run(batch)
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if times:
        return statistics.median(times)
    began = time.perf_counter()  # one run takes longer than all that was allowed
    sessions[0].run(batch)
    return time.perf_counter() - began
