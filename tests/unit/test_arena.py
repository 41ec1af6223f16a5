"""The arena: one contestant at a time, block by block; the bad ones fall out."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pareflow import network
from pareflow.compiler import OnnxRuntime, OpenVino, TorchEager, openvino
from pareflow.compiler.openvino import OpenVinoSession
from pareflow.errors import (
    BusyMachineError,
    CrashedError,
    PareflowError,
    StepFailedError,
    TimedOutError,
    WorkloadError,
)
from pareflow.hardware import layout, noise, probe
from pareflow.hardware.noise import Noise
from pareflow.isolation import Child, Limits
from pareflow.measurement import Ran
from pareflow.measuring import arena as arenas
from pareflow.measuring import contestant as serving
from pareflow.measuring.arena import Arena, Contestant, Protocol, write_feeds
from pareflow.measuring.race import LEAST_LOADS, Race
from pareflow.network import Form
from pareflow.variant import Step
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
ROGUE = {"file": {"path": "rogue_images.py"}}
QUICK = Protocol(blocks=4, block_ms=1, least=2, most=6)


@pytest.fixture
def enter(tmp_path: Path, forms: Forms, load_tiny: Load, workloads: Path) -> Callable[..., Arena]:
    """An arena over compiled tiny images, one contestant per step."""
    write_feeds([load_tiny("images").example(2)], tmp_path / "feeds.npz")

    def entered(*steps: Step, patience_s: float = 300) -> Arena:
        return Arena(
            [contestant(step, forms, tmp_path) for step in steps],
            feeds=tmp_path / "feeds.npz",
            batch_size=2,
            environment="here",
            workload=(ROGUE, workloads),
            limits=Limits(seconds=120),
            logs=tmp_path / "logs",
            patience_s=patience_s,
        )

    return entered


def contestant(step: Step, forms: Forms, tmp_path: Path) -> Contestant:
    name = str(step.settings.get("tag", step.name))
    artifact = tmp_path / name
    artifact.mkdir()
    backend = OnnxRuntime() if step.name == "onnxruntime" else TorchEager()
    backend.compile(forms("images")[backend.form], artifact)
    return Contestant(name, artifact, step, size_mib=1.5)


def test_a_contestant_is_fed_in_its_own_way_else_as_the_others(tmp_path: Path) -> None:
    plain = Contestant("v", tmp_path / "artifact", Step("onnxruntime", {"threads": 2}), size_mib=1.5)
    others = tmp_path / "feeds.npz", ({"file": {"path": "theirs.py"}}, tmp_path)
    told = plain.arguments(*others)
    assert told == {
        "artifact": str(tmp_path / "artifact"),
        "backend": plain.backend.to_json(),
        "reference": {"file": {"path": "theirs.py"}},
        "folder": str(tmp_path),
        "feeds": str(tmp_path / "feeds.npz"),
    }
    own = replace(
        plain, feeds=tmp_path / "own.npz", workload=({"file": {"path": "own.py"}}, tmp_path / "own")
    )
    assert own.arguments(*others) == {
        **told,
        "reference": {"file": {"path": "own.py"}},
        "folder": str(tmp_path / "own"),
        "feeds": str(tmp_path / "own.npz"),
    }


def test_contestants_take_turns_and_never_run_together(enter: Callable[..., Arena], tmp_path: Path) -> None:
    book = tmp_path / "book"
    steps = [Step("witness", {"tag": tag, "book": str(book)}) for tag in ("a", "b")]
    with enter(*steps) as arena:
        before_timing = len(book.read_text().splitlines())
        measured = arena.measure(QUICK)
        assert arena.failures == {}
    requests = [line.split() for line in book.read_text().splitlines()]
    assert before_timing == 4  # each: the first request, and one of every shape
    intervals = sorted((int(began), int(ended)) for _, began, ended in requests)
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(intervals))
    turns = [(label, len(list(group))) for label, group in itertools.groupby(label for label, *_ in requests)]
    timed = {label: sum(map(len, found.blocks_ms)) for label, found in measured.items()}
    assert len(turns) >= 2 + QUICK.blocks  # rounds of two; a turn may follow one of the same contestant
    for label, found in measured.items():
        assert len(found.blocks_ms) == QUICK.blocks
        assert {len(block) for block in found.blocks_ms} <= set(range(QUICK.least, QUICK.most + 1))
        assert timed[label] < sum(count for name, count in turns if name == label)  # warm-up is not kept


def test_every_other_order_is_the_one_before_reversed(enter: Callable[..., Arena], tmp_path: Path) -> None:
    """With two contestants each comes first as often as second."""
    book = tmp_path / "book"
    steps = [Step("witness", {"tag": tag, "book": str(book)}) for tag in ("a", "b")]
    with enter(*steps) as arena:
        arena.measure(Protocol(blocks=0, least=1, most=1))
        warm = len(book.read_text().splitlines())
        arena._warm = lambda variant, protocol: 1  # type: ignore[method-assign]
        arena.measure(Protocol(blocks=40, blocks_per_load=40, least=1, most=1))
    labels = [line.split()[0] for line in book.read_text().splitlines()[warm:]]
    orders = list(zip(labels[::2], labels[1::2], strict=True))
    assert len(orders) == 40
    assert all(ours == theirs[::-1] for ours, theirs in zip(orders[::2], orders[1::2], strict=True))
    assert len(set(orders[::2])) == 2


def test_measurement_says_what_was_measured(enter: Callable[..., Arena]) -> None:
    with enter(OnnxRuntime().step) as arena:
        found = arena.measure(QUICK)["onnxruntime"]
    assert (found.variant, found.environment, found.batch_size, found.size_mib) == (
        "onnxruntime",
        "here",
        2,
        1.5,
    )
    assert (found.ran.runtime, found.ran.precision, found.ran.threads) == ("onnxruntime", "float32", 1)
    assert all(ms > 0 for ms in found.samples_ms)
    for known in (found.load_s, found.first_request_ms, found.peak_memory_mib):
        assert known is not None
        assert known > 0


def test_joules_and_processor_time_are_per_request(
    enter: Callable[..., Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that draws 100 W all the while: so it does while it answers, however long it is told to."""
    monkeypatch.setattr(arenas, "processor_joules", lambda: lambda: 100 * time.perf_counter())
    with enter(OnnxRuntime().step) as arena:
        found = arena.measure(Protocol(blocks=4, block_ms=1e-6, least=3))["onnxruntime"]
    assert found.power_w == pytest.approx(100, rel=0.1)
    assert found.cpu_ms is not None
    assert found.cpu_ms > 0


def test_what_sleeps_uses_less_of_its_core_than_what_computes(enter: Callable[..., Arena]) -> None:
    with enter(Step("sluggish"), OnnxRuntime().step) as arena:
        found = arena.measure(QUICK)
    asleep, awake = found["sluggish"].utilisation, found["onnxruntime"].utilisation
    assert asleep is not None
    assert awake is not None
    assert asleep < awake


def test_a_busy_machine_is_not_timed_on(enter: Callable[..., Arena], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "watch", lambda: Noise(share=0.2, spread=1.0, steal=0.0, busy_cores=2.0))
    with enter(OnnxRuntime().step, patience_s=0) as arena, pytest.raises(BusyMachineError):
        arena.measure(QUICK)


def test_what_disturbs_stands_in_the_measurement(
    enter: Callable[..., Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "watch", lambda: Noise(share=0.8, spread=1.0, steal=0.0, busy_cores=0.0))
    with enter(OnnxRuntime().step) as arena:
        found = arena.measure(QUICK)["onnxruntime"]
    assert found.noise == "a busy thread gets 80% of a core"


def test_processes_lie_in_memory_alike_where_the_system_lets_them(enter: Callable[..., Arena]) -> None:
    """Each as the kernel says (proc(5)); whoever begins them stays as it was."""
    ours = _personality(os.getpid())
    with enter(OnnxRuntime().step, TorchEager().step) as arena:
        children = [running._child._process.pid for running in arena._running.values()]
        assert len(children) == 2
        for running, pid in zip(arena._running.values(), children, strict=True):
            assert bool(_personality(pid) & layout.NOT_AT_RANDOM) is running.alike
    assert _personality(os.getpid()) == ours


def _personality(pid: int) -> int:
    return int(Path(f"/proc/{pid}/personality").read_text(), 16)


def test_microseconds_say_where_processes_lie_at_random(
    enter: Callable[..., Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that refuses it; what takes a millisecond says nothing of it."""
    monkeypatch.setattr(noise, "watch", lambda: Noise(share=0.8, spread=1.0, steal=0.0, busy_cores=0.0))
    monkeypatch.setattr(layout, "alike", lambda: nullcontext(False))
    with enter(OnnxRuntime().step, Step("sluggish")) as arena:
        found = arena.measure(QUICK)
    slow = "a busy thread gets 80% of a core"
    assert found["sluggish"].noise == slow
    assert found["onnxruntime"].noise.startswith(f"{slow}, its process lies in memory at random")


@pytest.mark.parametrize(
    ("step", "error", "said"),
    [
        (Step("segfaults_under_load", {"requests": 0}), CrashedError, "SIGSEGV"),
        (Step("segfaults_under_load", {"requests": 4}), CrashedError, "SIGSEGV"),
        (Step("no_such_backend"), PareflowError, "must be valid"),
    ],
    ids=["while loading", "while timed", "unknown"],
)
def test_bad_contestant_falls_out_and_the_others_go_on(
    enter: Callable[..., Arena], step: Step, error: type[PareflowError], said: str
) -> None:
    with enter(step, OnnxRuntime().step) as arena:
        measured = arena.measure(QUICK)
        assert measured.keys() == {"onnxruntime"}
        assert len(measured["onnxruntime"].blocks_ms) == QUICK.blocks
        assert arena.failures.keys() == {step.name}
        assert isinstance(arena.failures[step.name], error)
        assert said in str(arena.failures[step.name])


def test_artifact_that_does_not_load_is_told(enter: Callable[..., Arena], tmp_path: Path) -> None:
    arena = enter(OnnxRuntime().step)
    (tmp_path / "onnxruntime" / network.FILES["onnx"]).unlink()
    with arena:
        assert isinstance(arena.failures["onnxruntime"], StepFailedError)
        assert arena.measure(QUICK) == {}


def test_contestant_that_hangs_is_stopped_while_the_others_go_on(enter: Callable[..., Arena]) -> None:
    with enter(Step("hangs_under_load"), OnnxRuntime().step) as arena:
        assert len(contestants_alive()) == 2
        hanging = arena._running["hangs_under_load"]
        assert hanging._limits.seconds == 120
        hanging._limits = Limits(seconds=1)  # it is loaded, which takes longer
        measured = arena.measure(Protocol(blocks=20, block_ms=1, least=30, most=30))
        assert isinstance(arena.failures["hangs_under_load"], TimedOutError)
        assert measured.keys() == {"onnxruntime"}
        assert len(contestants_alive()) == 1


def test_no_contestant_outlives_its_arena(enter: Callable[..., Arena]) -> None:
    with pytest.raises(KeyError), enter(OnnxRuntime().step) as arena:  # noqa: PT012 (it dies inside)
        assert len(contestants_alive()) == 1
        arena.measure(QUICK)["no such variant"]
    assert contestants_alive() == []


def contestants_alive() -> list[psutil.Process]:
    """The processes that this one has started for an arena; waits a little for killed ones to go."""
    for _ in range(40):
        children = psutil.Process().children()
        living = [p for p in children if p.status() != psutil.STATUS_ZOMBIE]
        if len(living) == len(children):
            break
        time.sleep(0.05)
    return [p for p in living if "pareflow.isolation" in p.cmdline()]


def test_contestant_answers_until_its_orders_end(
    forms: Forms, load_tiny: Load, tmp_path: Path, workloads: Path
) -> None:
    """The protocol by hand: a report, a list of times per order, and a quiet end."""
    feeds = [load_tiny("images").example(1), load_tiny("images").example(1)]
    write_feeds(feeds, tmp_path / "feeds.npz")
    entered = contestant(OnnxRuntime().step, forms, tmp_path)
    orders, ours = os.pipe()
    answers, theirs = os.pipe()
    arguments: dict[str, Any] = {
        "artifact": str(entered.artifact),
        "backend": entered.backend.to_json(),
        "reference": ROGUE,
        "folder": str(workloads),
        "feeds": str(tmp_path / "feeds.npz"),
        "cores": [probe.cores()[-1]],
        "commands": orders,
        "answers": theirs,
    }
    serve = "pareflow.measuring.contestant:serve"
    with Child(serve, arguments, Limits(seconds=120), tmp_path / "log", (orders, theirs)) as child:
        os.close(orders)
        os.close(theirs)
        os.write(ours, b"3 0\n1 5\n")
        os.close(ours)
        with os.fdopen(answers) as lines:
            report, *timings = [json.loads(line) for line in lines]
        assert child.result() is None
    assert report["ran"]["runtime"] == "onnxruntime"
    assert [len(timing["ms"]) for timing in timings] == [3, 1]


def test_protocol_fills_a_block_within_its_bounds() -> None:
    """A stub in place of a process: 10 requests of 3 ms fill a block of 30 ms; the bounds hold. Slow ones are
    as many as end in a second, and one at the least."""

    class Steady(Arena):
        def __init__(self, ms: float) -> None:
            self.ms, self.counts = ms, list[int]()

        def _block(self, variant: str, count: int, start: int = 0) -> tuple[float, ...]:
            self.counts.append(count)
            return (self.ms,) * count

    for ms, expected in ((3.0, 10), (0.001, 50), (200.0, 5), (300.0, 3), (3000.0, 1)):
        arena = Steady(ms)
        protocol = Protocol(block_ms=30, fewest=1, least=5, most=50)
        assert arena._warm("any", protocol) == protocol.requests(ms) == expected
        assert arena.counts == [1, expected]
    finalists = Protocol(block_ms=30, fewest=8, least=8)  # so many decide, whatever they take
    assert [finalists.requests(ms) for ms in (3.0, 3000.0)] == [10, 8]


def test_minutes_are_those_of_blocks_warm_up_and_reloads() -> None:
    """By hand: 2 + 30 + 4 blocks of one request of 3 s each; of 25 ms each where they are quick."""
    assert Protocol(fewest=1).minutes(3000.0) == pytest.approx(36 * 3 / 60)
    assert Protocol().minutes(1.0) == pytest.approx(36 * 0.025 / 60)


def texts(lengths: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Batches of one text each."""
    return [{"ids": np.full((1, length), number)} for number, length in enumerate(lengths)]


def numbers(values: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Batches of one shape, each of a number."""
    return [{"ids": np.full((1, 1), value)} for value in values]


class Paced:
    """A session whose requests take as long as their input says, times `pace`; a clock reads it off.

    The first `slow` requests take longer, as those of something that warms up.
    """

    def __init__(self, pace: float, slow: int) -> None:
        self.pace, self.slow = pace, slow

    def run(self, feeds: Mapping[str, np.ndarray]) -> float:
        self.slow -= 1
        ids = feeds["ids"]
        return self.pace * float(ids.shape[1] + ids[0, 0] / 8) * (1 + 0.1 * max(self.slow, 0))


class InThread:
    """A contestant's process, as a thread of this one."""

    def __init__(
        self,
        function: str,
        arguments: Mapping[str, Any],
        limits: Limits,
        log: Path,
        descriptors: Sequence[int],
    ) -> None:
        own = {name: os.dup(arguments[name]) for name in ("commands", "answers")}
        self._thread = threading.Thread(target=serving.serve, kwargs={**arguments, **own})
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._thread.join()


@pytest.mark.parametrize("batches", [numbers(range(32)), texts(range(3, 35))], ids=["values", "lengths"])
def test_a_block_holds_the_same_inputs_for_all(
    batches: list[dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of half the pace of another, that warms up for longer, is twice as fast block by block."""
    paces = {"slow": Paced(2.0, slow=0), "fast": Paced(1.0, slow=30)}

    def load(artifact: Path, *_: Any) -> tuple[Paced, dict[str, Any]]:
        shapes = len(serving.of_each_shape(batches))
        ran = {"runtime": "none", "version": "0", "precision": "float32", "device": "CPU", "threads": 1}
        return paces[artifact.name], {"load_s": 0.0, "first_request_ms": 0.0, "shapes": shapes, "ran": ran}

    monkeypatch.setattr(serving, "load", load)
    monkeypatch.setattr(serving, "stopwatch", lambda ran: lambda call: call())
    monkeypatch.setattr(arenas, "Child", InThread)
    monkeypatch.setattr(arenas, "await_quiet", lambda patience_s: Noise(1.0, 1.0, 0.0, 0.0))
    write_feeds(batches, tmp_path / "feeds.npz")
    arena = Arena(
        [Contestant(name, tmp_path / name, Step("onnxruntime"), size_mib=1) for name in paces],
        feeds=tmp_path / "feeds.npz",
        batch_size=1,
        environment="here",
        workload=(ROGUE, tmp_path),
        limits=Limits(seconds=60),
        logs=tmp_path,
    )
    with arena:
        found = arena.measure(Protocol(blocks=12, blocks_per_load=6, block_ms=300))
    pairs = list(zip(found["slow"].blocks_ms, found["fast"].blocks_ms, strict=True))
    assert all(slow[0] == 2 * fast[0] for slow, fast in pairs)
    assert len({fast[0] for _, fast in pairs}) > 6  # where blocks begin is drawn
    if len(serving.of_each_shape(batches)) > 1:
        assert all(slow == tuple(2 * ms for ms in fast) for slow, fast in pairs)


def test_feeds_come_back_as_they_were(tmp_path: Path) -> None:
    from pareflow.measuring.contestant import read_feeds

    batches: Sequence[dict[str, np.ndarray]] = [
        {"ids": np.arange(i, i + 4), "mask": np.ones(4, dtype=np.int64)} for i in range(12)
    ]
    write_feeds(batches, tmp_path / "feeds.npz")
    found = read_feeds(tmp_path / "feeds.npz")
    assert [list(batch) for batch in found] == [["ids", "mask"]] * 12
    assert all(np.array_equal(one["ids"], other["ids"]) for one, other in zip(batches, found, strict=True))


def test_texts_are_fed_as_texts_and_other_objects_are_refused(tmp_path: Path) -> None:
    """Pickled, they would not be read."""
    from pareflow.measuring.contestant import read_feeds

    write_feeds([{"text": np.array([["good"], ["very bad"]], dtype=object)}], tmp_path / "feeds.npz")
    assert read_feeds(tmp_path / "feeds.npz")[0]["text"].tolist() == [["good"], ["very bad"]]
    with pytest.raises(WorkloadError, match="`0/text` holds objects of other types"):
        write_feeds([{"text": np.array([None, "bad"], dtype=object)}], tmp_path / "feeds.npz")


def test_what_is_loaded_has_met_every_shape_and_no_other(
    forms: Forms, load_tiny: Load, workloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With static shapes a model is compiled for each: not within a timed request, and none for nothing."""
    backend, compiled = OpenVino(static_shapes=True), list[Any]()

    def counted(*given: Any) -> OpenVinoSession:
        compiled.append(given)
        return OpenVinoSession(*given)

    backend.compile(forms("texts")["openvino"], tmp_path)
    monkeypatch.setattr(openvino, "OpenVinoSession", counted)
    batches = [load_tiny("texts").example(samples) for samples in (1, 3, 1)]
    session, report = serving.load(tmp_path, backend.step, ROGUE, workloads, batches)
    assert (len(compiled), report["shapes"]) == (2, 2)
    serving.timed(session, batches, report["ran"])
    assert len(compiled) == 2


def test_workers_memory_and_processor_time_count_as_the_contestants_own() -> None:
    class Waits:
        """Answers when the worker has computed for a while."""

        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            until = worker.cpu_times().user + 0.1
            while worker.cpu_times().user < until:
                time.sleep(0.01)
            return dict(feeds)

        def ran(self) -> Ran:
            return Ran("none", "0", "float32", "CPU", 1)

    alone = serving.peak_memory_mib()
    held = "held = bytearray(range(256)) * 2**18; print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        worker, ours = psutil.Process(process.pid), time.process_time()
        together = serving.peak_memory_mib()
        told = serving.timed(Waits(), [{}], {"runtime": "none", "device": "CPU"})
        ours = time.process_time() - ours
        process.kill()
    assert together > alone + 64
    assert told["cpu_ms"] >= 1000 * ours + 50


@pytest.mark.parametrize(("needed", "blocks"), [(1000.0, 2 * LEAST_LOADS), (0.001, 10)], ids=["lost", "open"])
def test_a_race_that_is_lost_ends_the_timing_and_one_that_is_open_does_not(
    enter: Callable[..., Arena], needed: float, blocks: int
) -> None:
    protocol = Protocol(blocks=10, blocks_per_load=2, block_ms=1, least=2, most=6)
    with enter(Step("onnxruntime"), Step("torch_eager")) as arena:
        found = arena.measure(protocol, Race("torch_eager", "onnxruntime", needed))
    assert [len(measured.blocks_ms) for measured in found.values()] == [blocks, blocks]


def test_a_race_is_lost_only_where_the_whole_interval_lies_below() -> None:
    """Loads of 2, 2.1 and 1.9 times: Student's interval at 99.5 % reaches from about 1.5 to 2.66."""
    blocks = {"base": [(2.0,), (2.1,), (1.9,)], "new": [(1.0,), (1.0,), (1.0,)]}
    lost = Race("new", "base", 3.0).lost(blocks, 1)
    assert lost is not None
    assert lost.high == pytest.approx(2.662, abs=0.001)
    assert Race("new", "base", 2.6).lost(blocks, 1) is None
    assert Race("new", "base", 3.0).lost({**blocks, "new": blocks["new"][:2]}, 1) is None  # one of them died
    assert Race("new", "base", 3.0).lost({n: b[:2] for n, b in blocks.items()}, 1) is None  # too few loads
