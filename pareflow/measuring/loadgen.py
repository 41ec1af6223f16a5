"""The child side of the load: a process in which LoadGen sends requests and one executable answers them.

LoadGen sends from the main thread; another thread answers, on the cores that the executable was given. With
an executable that does nothing, a query took 0.1 to 0.2 ms (p50) on two busy cores: what this adds.
"""

import math
import os
import queue
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pareflow.errors import MissingExtraError
from pareflow.hardware import probe
from pareflow.measuring import contestant, loadgen_log
from pareflow.measuring.load import Load
from pareflow.measuring.stopwatch import stopwatch
from pareflow.variant import Step
from pareflow.workload import Arrays

WARM_UP = 20
_PER_STREAM = 8


def answer(
    artifact: str,
    backend: Mapping[str, Any],
    reference: Mapping[str, Any],
    folder: str,
    feeds: str,
    threads: int,
    load: Mapping[str, Any],
) -> dict[str, Any]:
    """Load, warm up, answer as LoadGen asks; the ms of every query, and what LoadGen says of the run.

    Raises: MissingExtraError where LoadGen is not installed.
    """
    lg = imported()
    cores = probe.cores()
    server = _Server(lg, cores[-threads:], contestant.read_feeds(Path(feeds)))
    report = server.begin(Path(artifact), Step.from_json(backend), reference, Path(folder))
    os.sched_setaffinity(0, cores[:-threads] or cores)  # LoadGen keeps off the executable's cores if it can
    with tempfile.TemporaryDirectory() as out:
        run(lg, server, settings(lg, Load(**load), server.service_s), Path(out))
        server.end()
        log = loadgen_log.read(Path(out))
    return {
        **report,
        "ms": log.latencies_ms,
        "said": asdict(log.said),
        "peak_memory_mib": contestant.peak_memory_mib(),
    }


class _Server(threading.Thread):
    """The thread that answers, one request at a time; `service_s` is what one takes when there is no line.

    What goes wrong in it is kept, and raised by `begin` or `end`; later requests get an answer for the form.
    """

    def __init__(self, lg: Any, cores: Sequence[int], batches: Sequence[Arrays]) -> None:
        super().__init__(daemon=True)
        self._lg, self._cores, self.batches = lg, cores, list(batches)
        self.requests: queue.SimpleQueue[list[tuple[int, int]] | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._error: Exception | None = None
        self.service_s = math.nan

    def begin(self, artifact: Path, step: Step, reference: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Load and warm up in the thread, whose cores native threads inherit. Raises: what went wrong."""
        self._executable = (artifact, step, reference, folder)
        self.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self._report

    def end(self) -> None:
        """Wait until all is answered. Raises: what went wrong."""
        self.requests.put(None)
        self.join()
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        try:
            self._prepare()
        except Exception as error:
            self._error = error
            return
        finally:
            self._ready.set()
        while (samples := self.requests.get()) is not None:
            for name, index in samples:
                self._answer(index)
                self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(name, 0, 0)])

    def _prepare(self) -> None:
        os.sched_setaffinity(0, self._cores)
        self._session, self._report = contestant.load(*self._executable, self.batches)
        clock = stopwatch(self._report["ran"])
        times = [clock(partial(self._session.run, self.batches[0])) for _ in range(WARM_UP)]
        self.service_s = float(np.median(times)) / 1000

    def _answer(self, index: int) -> None:
        if self._error is None:
            try:
                self._session.run(self.batches[index])
            except Exception as error:
                self._error = error


class Answerer(Protocol):
    """What LoadGen asks: it takes queries of (name, index of the batch), and completes each by its name."""

    requests: "queue.SimpleQueue[list[tuple[int, int]] | None]"

    @property
    def batches(self) -> Sequence[Any]:
        """What a query's index counts."""


def run(lg: Any, server: Answerer, settings: Any, out: Path) -> None:
    """One run of LoadGen, which writes its log into `out`."""
    written, log = lg.LogOutputSettings(), lg.LogSettings()
    written.outdir, written.copy_summary_to_stdout = str(out), False
    log.log_output, log.enable_trace = written, True  # latencies of single queries are in the trace alone
    count = len(server.batches)
    sut = lg.ConstructSUT(
        lambda samples: server.requests.put([(sample.id, sample.index) for sample in samples]), lambda: None
    )
    library = lg.ConstructQSL(count, count, lambda indices: None, lambda indices: None)
    lg.StartTestWithLogSettings(sut, library, settings, log)
    lg.DestroyQSL(library)
    lg.DestroySUT(sut)


def settings(lg: Any, load: Load, service_s: float) -> Any:
    """The load as LoadGen's settings; it makes more queries than the measured service time calls for."""
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, load.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = load.queries
    settings.min_duration_ms = math.ceil(load.seconds * 1000)
    for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(settings, name, load.seed)
    settings.single_stream_expected_latency_ns = max(1, int(service_s * 1e9 / 2))
    settings.multi_stream_expected_latency_ns = max(1, int(service_s * 1e9 / 2 * _PER_STREAM))
    settings.multi_stream_samples_per_query = _PER_STREAM
    settings.offline_expected_qps = 1 / service_s
    if load.per_s is not None and load.limit_ms is not None:
        settings.server_target_qps = load.per_s
        settings.server_target_latency_ns = math.ceil(load.limit_ms * 1e6)
        settings.server_target_latency_percentile = 0.99
        settings.server_max_async_queries = _longest_line(load.per_s, load.limit_ms, load, service_s)
    return settings


def _longest_line(per_s: float, limit_ms: float, load: Load, service_s: float) -> int:
    """How many requests may wait before LoadGen gives up, so that a hopeless run ends.

    Far more than 1 % of the requests then wait for longer than the limit: it cannot pass by ending early.
    """
    drain_s = max(5, 0.2 * load.duration_s)
    return math.ceil(max(drain_s / service_s, 2 * per_s * limit_ms / 1000))


def imported() -> Any:
    """LoadGen. Raises: MissingExtraError."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingExtraError(
            "a load needs the extra `loadgen`",
            "`mlcommons-loadgen` is not installed",
            "Run `pip install 'pareflow[loadgen]'`",
        ) from error
    return mlperf_loadgen
