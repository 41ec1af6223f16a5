"""A monitor while it runs: look by look, version after version. What it finds is recorded and acted on."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pareflow import spec
from pareflow.collection import holding
from pareflow.errors import InputError, PareflowError, TrackingError, TransientError
from pareflow.monitoring import exposition
from pareflow.monitoring.comparing import MAX_DROP
from pareflow.monitoring.exposition import Reading
from pareflow.monitoring.labels import are_kinds
from pareflow.monitoring.rules import Rules
from pareflow.monitoring.state import Breach, State
from pareflow.monitoring.watch import Watch
from pareflow.stages import monitoring as stage
from pareflow.store import Store
from pareflow.troubles import Troubles
from pareflow.workload import Arrays
from tasks import flow_runs
from tasks.late_labels import LateLabels
from tasks.monitoring import AWAY, Record, act
from tasks.serving import RegistrySource
from tasks.tracking import Tracker

log = logging.getLogger("pareflow.monitoring")

Told = Callable[[str], None]
AGAIN_S = 60.0
"""After a comparing process died."""
MISSING_S = 3600.0
"""After it lacked what a version is compared with: somebody may have brought that by then."""


@dataclass(frozen=True)
class Asked:
    """What is monitored, and by what."""

    name: str
    url: str
    data_dir: Path
    rules: Path | None = None
    config: Path | None = None
    requests: Path | None = None
    """The folder of kept requests; None: the data folder's."""
    labels: Path | None = None
    seconds: float | None = None
    """None: for ever."""
    api_key: str | None = None


@dataclass
class Session:
    """One monitor, with what it has found so far. `told` hears each breach, and what goes wrong."""

    asked: Asked
    tracker: Tracker
    rules: Rules
    config: Path | None
    told: Told
    breaches: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    troubles: Troubles = field(default_factory=Troubles)

    def follow(self, reading: Reading) -> dict[str, Any]:
        """Look until the time is over; `reading` is the first one. Raises: as `Monitored`."""
        if self.rules.needs_requests or self.rules.retrains:
            self._check_pipeline()
        seconds = self.asked.seconds
        until = None if seconds is None else time.monotonic() + seconds
        state = State.read(self.state_path)
        figures: dict[str, float] = {}
        while until is None or time.monotonic() < until:
            with ExitStack() as stack:
                served = Monitored(self, reading, stack, state.for_version(reading.version))
                following = None
                for one in self._readings(until):
                    if one is not None and one.version != reading.version:
                        following = one
                        break
                    served.look(one)
                served.record()
            figures, state, reading = served.figures, served.watch.state, following or reading
        document = {"name": self.asked.name, "version": state.version, "looks": self.looks}
        return {**document, "figures": figures, "breaches": self.breaches}

    @property
    def state_path(self) -> Path:
        return self.asked.data_dir / "monitoring" / f"{self.asked.name}.json"

    def _check_pipeline(self) -> None:
        """Raises: InputError where the pipeline to compare with, or to train again, cannot be read."""
        if self.config is None:
            raise InputError(
                "rules about drift and quality, and those that retrain, need the version's pipeline",
                "its YAML is not at hand",
                "Name it with --config, or leave these rules out",
            )
        spec.read(self.config)

    def keep(self, state: State) -> None:
        """Write down what is known of the rules. Where the disk takes nothing, which is told once, what is in
        memory decides: a version that breaks its rules is left all the same."""
        try:
            state.write(self.state_path)
            self.troubles.over("state")
        except OSError as error:
            trouble = error.strerror or str(error)  # without the name of a file that is another each time
            if self.troubles.is_new("state", trouble):
                self.told(f"what is known of the rules is not kept: {trouble}")

    def _readings(self, until: float | None) -> Iterator[Reading | None]:
        """One reading every so often; None where the server does not answer, or refuses by now (a proxy that
        is set up anew, a key that is changed), which is told once."""
        due = time.monotonic()
        while until is None or time.monotonic() < until:
            due = max(due + self.rules.every_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            self.looks += 1
            try:
                reading = exposition.read(self.asked.url, self.asked.name, self.asked.api_key)
                self.troubles.over("server")
                yield reading
            except (TransientError, InputError) as error:
                if self.troubles.is_new("server", str(error)):
                    self.told(str(error))
                yield None


class Monitored:
    """One served version. Raises: InputError where a rule needs what is not at hand."""

    def __init__(self, session: Session, reading: Reading, stack: ExitStack, state: State) -> None:
        self._session, self._version = session, reading.version
        self.watch = Watch(session.rules, state)
        self.watch.reads(reading)
        self._record = Record(session.tracker, session.asked.name, reading.version)
        self._recorded = time.monotonic()
        self._comparer: stage.Comparer | None = None
        self._again = 0.0
        self._knows = False
        self._troubles = Troubles()
        self._held, self._comparing = (stack.enter_context(ExitStack()) for _ in range(2))
        self.figures: dict[str, float] = {}
        self._followed: list[dict[str, Any]] = []
        self._labels = LateLabels(session.asked.labels, self._record, session.told)

    def look(self, reading: Reading | None) -> None:
        """One look at all that there is by now, and what follows from it."""
        found = [] if reading is None else self.watch.reads(reading)
        self.watch.state = replace(self.watch.state, looks=self.watch.state.looks + 1)
        for breach in self._due():
            self._follow(breach, retried=True)
        for breach in found:
            self._follow(breach)
        if self._session.rules.needs_requests:  # it takes longer: what fails by now is followed first
            self._tell_where_none_is_kept(reading)
            for breach in self._compared(time.monotonic()):
                self._follow(breach)
        self._tell()
        self._session.keep(self.watch.state)
        if time.monotonic() - self._recorded >= self._session.rules.record_s:
            self.record()

    def record(self) -> None:
        """A row of what is known now."""
        self._recorded = time.monotonic()
        state = self.watch.state
        self.figures = self.watch.row()
        broken = {f"{name}.breached": float(state.of(name).breached) for name in self._session.rules.named()}
        self._record.add({**self.figures, **broken}, state.looks)
        self._labels.record(state.looks)

    def _tell_where_none_is_kept(self, reading: Reading | None) -> None:
        figures = {} if reading is None else reading.figures
        if figures.get("request_log.unkeepable") and not figures.get("request_log.kept"):
            words = "no request can be kept, so that nothing is compared: the server's log says why"
            if self._troubles.is_new("requests", words):
                self._session.told(words)

    def _due(self) -> tuple[Breach, ...]:
        """Those whose rollback waits for the registry, once that answers again."""
        waiting = self.watch.state.waiting
        if not waiting:
            return ()
        try:
            self._session.tracker.alias(self._session.asked.name, "champion")
        except AWAY:
            return ()
        self.watch.state = replace(self.watch.state, waiting=())
        return waiting

    def _follow(self, breach: Breach, *, retried: bool = False) -> None:
        session = self._session
        config = None if session.config is None else str(session.config)
        name = session.asked.name
        document = act(session.tracker, name, breach, config, retried=retried)
        state = self.watch.state
        if document["again"]:
            state = self.watch.state = replace(state, waiting=(*state.waiting, breach))
            if retried:
                return
        if event := document["event"]:
            self.watch.state = replace(state, untold=(*state.untold, event))
        session.breaches.append(document)
        self._followed.append(document)
        session.told(_words(document))

    def _tell(self) -> None:
        """Tell Prefect and MLflow of what was followed in this look: no rollback waits for them."""
        told = self._told()
        for document in self._followed:
            event = document["event"]
            document["event"] = event is not None and event["id"] in told
            self._record.breach(document, self.watch.state.looks)
        self._followed = []

    def _told(self) -> set[str]:
        """The events that Prefect took now; where it is away, which is told once, the rest waits."""
        session, told = self._session, set[str]()
        while untold := self.watch.state.untold:
            try:
                flow_runs.tell(untold[0])
                told.add(untold[0]["id"])
            except InputError as error:
                log.warning("an event is dropped: %s", error)
            except (TransientError, TrackingError) as error:
                if session.troubles.is_new("events", str(error)):
                    session.told(str(error))
                return told
            self.watch.state = replace(self.watch.state, untold=untold[1:])
        session.troubles.over("events")
        return told

    def _compare(self) -> stage.Comparer:
        """Start the process that answers kept requests again. What it reads is held until it has."""
        asked, config = self._session.asked, self._session.config
        assert config is not None  # it was looked at before anything began
        self._held.enter_context(holding(Store(asked.data_dir / "store"), f"monitor {asked.name}"))
        package = RegistrySource(f"models:/{asked.name}@champion", asked.data_dir).copy(self._version)
        comparing = stage.compared(
            self._session.rules,
            config,
            asked.data_dir,
            package,
            asked.requests or asked.data_dir / "requests",
            asked.data_dir / "monitoring" / asked.name / self._version,
            (asked.name, self._version),
            asked.data_dir / "logs" / f"monitoring-{asked.name}.log",
        )
        self._comparer, self._knows = self._comparing.enter_context(comparing), False
        return self._comparer

    def _compared(self, at_s: float) -> list[Breach]:
        """What is new of kept requests and labels. Where the process died another begins, after a while; what
        cannot be compared with its own original is told once, and not judged."""
        if time.monotonic() < self._again:
            return []
        try:
            comparer = self._comparer or self._compare()
            reference = None if self._knows else comparer.reference()
            rows, last = comparer.news(self.watch.state.compared)
        except (InputError, ValueError) as error:
            if self._troubles.is_new("comparison", str(error)):
                self._session.told(f"version {self._version} is not compared: {error}")
                self._record.note({"not_compared": str(error)}, "not-compared.json")
            self._stop_comparing(MISSING_S)
            return []
        except (PareflowError, OSError) as error:  # no room, or no descriptor is free: what fails is followed
            self._session.told(f"kept requests are not compared for {AGAIN_S:g} s: {error}")
            self._stop_comparing(AGAIN_S)
            return []
        if reference is not None:
            self._learn(reference)
        if not self._knows:
            return []
        state = replace(self.watch.state, compared=last)
        ours, place = self._labels.since(state.labels, comparer.folder, state.looks)
        self.watch.state = replace(state, labels=place)
        found = self.watch.compares(rows, at_s)
        return found if ours is None else [*found, *self.watch.joins(ours)]

    def _stop_comparing(self, again_s: float) -> None:
        self._held.close()
        self._comparing.close()
        self._comparer, self._again = None, time.monotonic() + again_s

    def _learn(self, reference: Arrays) -> None:
        """Give the watch its reference: all is read by then. Raises: InputError."""
        self._held.close()
        if self._session.asked.labels is not None and not are_kinds(reference["served"]):
            raise InputError(
                "labels can be joined where each prediction is one of some kinds",
                f"predictions of {self._session.asked.name} are {reference['served'].dtype}",
                "Leave --labels out",
            )
        max_drop = reference.pop(MAX_DROP, None)
        self.watch.compare_with(reference, None if max_drop is None else float(max_drop))
        self._knows = True


def _words(document: Mapping[str, Any]) -> str:
    back, refused = document["rolled_back_to"], document["not_rolled_back"]
    done = f"; rolled back to version {back}" if back else f"; not rolled back: {refused}" if refused else ""
    return f"breach by version {document['version']}: {document['reason']}{done}"
