"""What every stage of one run shares: the pipeline, the machine, the store; and the records they pass on."""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pareflow.catalog import members
from pareflow.errors import SpecError, TransientError
from pareflow.gate import Verdict
from pareflow.hardware import probe
from pareflow.hardware.budget import Fit
from pareflow.hardware.device import INTERRUPTED
from pareflow.intervals import samples_needed
from pareflow.isolation import Limits, run_isolated
from pareflow.measurement import Environment, Interval, Measurement, Quality
from pareflow.measuring.environment import environment
from pareflow.measuring.quality import Metric
from pareflow.remote_store import opened
from pareflow.spec import PipelineSpec
from pareflow.stages.clock import Clock, Meter
from pareflow.store import Store, writing
from pareflow.variant import Recipe, digest

Status = Literal["ok", "failed", "unavailable", "pruned"]
Role = Literal["baseline", "original", "candidate", "ablation"]
"""An ablation is the winner without one of its steps: what the step gives is seen beside it."""
TRAINING_HOURS = 12

IMPORTED = ("pareflow.stages.jobs", "accelerate", "onnx", "onnxscript", "torch")
"""What jobs find imported: nothing here starts a thread that a fork would lose. Variants are timed elsewhere,
in new processes (`measuring/arena.py`)."""


@dataclass(frozen=True)
class WorkloadFacts:
    """What the workload says of itself, found out in a process of its own."""

    digest: str
    data_digest: str
    sizes: Mapping[str, int]
    metric: str
    seed: int
    serving_requires: tuple[str, ...]
    tokens: bool
    """Whether it takes integers, as networks over tokens do: the built-in list treats it as a transformer."""
    varied: bool = False
    """Whether its inputs differ in size from sample to sample, as texts do."""
    students: tuple[str, ...] = ()
    """The smaller networks that it offers to be taught."""
    scale: tuple[float, float] | None = None
    """The least and the most that the run's metric can be, where that is known."""
    higher_is_better: bool = True
    """Whether more of the run's metric is better: of an error it is not."""
    commonest: float | None = None
    """How often that is right which always answers the search split's most frequent target, where the run's
    metric says that."""
    sliced: bool = True
    """Whether quality is told apart by parts of a split."""
    memory_mib: int | None = field(default=None, compare=False)
    """The most that loading and checking it took, another each time: every build holds as much at least."""


@dataclass(frozen=True)
class Run:
    """One run of a pipeline. `id` depends on what is run and where, so the same command resumes it."""

    spec: PipelineSpec
    config: Path
    data_dir: Path
    environment: Environment
    facts: WorkloadFacts
    remeasure: bool = False
    target: Path | None = None
    """The device profile that the command named, where it named one."""
    began: float = field(default_factory=time.monotonic, compare=False)
    """When the command began, by this machine's clock: for how long it took in the end."""
    spent: float = 0.0
    """Minutes of the budget that were used before: by the same run, until it was killed or had ended."""
    meter: Meter = field(default_factory=Meter, compare=False)
    """What this process is charged for: all that is new. What a kill took, and asking again, is free."""
    apart: bool = False
    """Whether what is measured is kept under keys of its own, which the run itself never asks for."""

    @classmethod
    def open(
        cls,
        spec: PipelineSpec,
        config: Path,
        data_dir: Path,
        *,
        target: Path | None = None,
    ) -> "Run":
        """The run of `spec`, which was read from `config`.

        Proves that the store can be written and that the workload gives data. Raises: PareflowError.
        """
        INTERRUPTED.clear()  # of a run before it, in the same process
        Store(data_dir / "store")
        with writing(data_dir):
            document = run_isolated(
                "pareflow.stages.jobs:describe",
                {
                    "reference": spec.workload,
                    "folder": str(config.parent),
                    "metric": _stated_metric(spec),
                    "lengths": spec.sweep.lengths if spec.sweep else (),
                },
                Limits(3600 * TRAINING_HOURS, threads=max(spec.target.usable_threads)),
                data_dir / "logs" / f"{spec.name}-workload.log",
                imported=IMPORTED,
            )
        lists = {name: tuple(document[name]) for name in ("serving_requires", "students")}
        facts = WorkloadFacts(**{**document, **lists})
        run = cls(spec, config, data_dir, environment(), facts, target=target)
        if problems := [*run._limits_misplaced(), *run._slices_lacking()]:
            raise SpecError(str(config), problems)
        return dataclasses.replace(run, spent=run._told)

    @property
    def id(self) -> str:
        """The run's name, 16 hex digits. The store's size changes nothing of what is run, nor does what the
        winner must be to become champion."""
        unrelated: Any = {"budget": {"store_gib"}, "approval_hours": True, "retraining": True}
        spec = self.spec.model_dump(mode="json", exclude=unrelated)
        return digest(spec, self.facts.digest, self.environment.fingerprint)[:16]

    @property
    def folder(self) -> Path:
        """Where relative paths in the workload's settings start from."""
        return self.config.parent

    @property
    def store(self) -> Store:
        return opened(self.data_dir / "store")

    @property
    def output(self) -> Path:
        """The folder of the run's report and documents."""
        return self.data_dir / "runs" / self.id

    @property
    def metric(self) -> str:
        return _stated_metric(self.spec) or self.facts.metric

    def _limits_misplaced(self) -> list[str]:
        """What the SLA says of the metric that could not be missed, or not be met, or only by the worst."""
        clause, scale = self.spec.sla.quality, self.facts.scale
        if clause is None:
            return []
        found = clause.wrong_way(self.metric, higher_is_better=self.facts.higher_is_better)
        return found if scale is None else [*found, *clause.problems(self.metric, scale)]

    def _slices_lacking(self) -> list[str]:
        """What the SLA says of slices where there are none to judge."""
        clause = self.spec.sla.quality
        if self.facts.sliced or clause is None or clause.worst_slice_max_drop is None:
            return []
        found = f"`{self.metric}` has none by itself on these targets"
        remedy = "let `slices()` of the workload give some, or leave the clause out"
        return [f"sla.quality.worst_slice_max_drop: needs slices, and {found}; {remedy}"]

    @property
    def share_lost(self) -> float | None:
        """The SLA's `max_drop`, where its metric is the share of right predictions: of other metrics it says
        nothing of how many predictions may differ."""
        quality = self.spec.sla.quality
        if quality is None or not Metric.named(self.metric, self.folder).share_correct:
            return None
        return quality.max_drop

    @property
    def samples_lacking(self) -> str | None:
        """What is told where no candidate that is only as good as the original can be shown to be, since the
        samples that decide are too few; None where they may do."""
        most = self.share_lost
        if most is None or not 0 < most < 1:
            return None
        needed, found = samples_needed(1 - most, self.spec.sla.confidence), self.facts.sizes["verdict"]
        if found >= needed:
            return None
        return (
            f"`max_drop: {most:g}` takes {needed} samples in the verdict split at least, and it has {found}: "
            "what is no better than the original cannot pass. Give more, or allow a larger drop"
        )

    @property
    def threads(self) -> tuple[int, ...]:
        return self.spec.target.usable_threads

    @property
    def limits(self) -> Limits:
        """What one variant may use."""
        budget = self.spec.budget
        return Limits(budget.variant_minutes * 60, budget.memory_mib, max(self.threads))

    @property
    def clock(self) -> Clock:
        return Clock(self.output / "clock.jsonl")

    @property
    def minutes_left(self) -> float:
        """Of the budget; negative where more than it was used."""
        return self.spec.budget.minutes - self.spent - self.meter.minutes

    def left(self, asked: str) -> float:
        """The minutes left when this was first asked, which is kept. Raises: StoreError.

        Until this process decides something anew, it only asks again, and that is free.
        """
        left = self.minutes_left
        if left == math.inf:
            return left
        if (known := self.clock.known(asked)) is not None:
            if self._told <= self.spent:
                self.meter.restart()
            return known
        with writing(self.data_dir):
            return self.clock.first(asked, left)

    @property
    def _told(self) -> float:
        """The most minutes of the budget that any answer says were used."""
        least = self.clock.least()
        return 0.0 if least is None else self.spec.budget.minutes - least

    def late(self, asked: str) -> bool:
        """Whether the budget was used up when this was first asked."""
        return self.left(asked) < 0

    def settled(self, what: str, number: int) -> int:
        """This number as it was when the run first settled it, which is kept. Raises: StoreError."""
        with writing(self.data_dir):
            return self.clock.settled(what, number)

    def stop(self, work: str, words: str) -> None:
        """Keep what this work failed of: told once, it is told whenever the run is asked again."""
        with writing(self.data_dir):
            self.clock.stop(work, words)

    @property
    def unhurried(self) -> "Run":
        """The run without a budget, which asks no clock: for what is found out of a winner beside the run."""
        return dataclasses.replace(self, meter=Meter(math.inf))

    def aside(self) -> "Run":
        """The run for a question that is asked beside it: all is measured again, without a budget, and the
        run's own measurements stay: asked again, it goes on by these."""
        return dataclasses.replace(self.unhurried, remeasure=True, apart=True)

    @property
    def attempts(self) -> Path:
        """Where it is noted how long builds have taken that have not ended."""
        return self.output / "building"

    def anew(self) -> "Run":
        """The run from its beginning: its budget and its variants' limits whole, all measured again."""
        self.clock.forget()
        shutil.rmtree(self.attempts, ignore_errors=True)
        return dataclasses.replace(self, remeasure=True, spent=0.0)

    def own_key(self, key: str) -> str:
        """Where this run keeps what it measures; what is there is forgotten if it is to be measured again.

        Beside the run it is this machine that is asked: an equal one that shares the store has other keys.
        """
        key = digest("apart", probe.boot(), key) if self.apart else key
        if self.remeasure:
            self.store.evict(key)
        return key

    def held(self, key: str, what: str) -> Path:
        """The store entry of what was made before. Raises: TransientError where it is gone or damaged."""
        entry = self.store.find(key)
        if entry is None:
            raise TransientError(
                f"{what} must be in the store",
                "it is gone or damaged",
                "Run the same command again; only it is redone",
            )
        return entry

    def made(self, key: str, make: Callable[[], Any]) -> Path:
        """The store entry that `make` leaves under a key; made where it is not there yet.

        Another run may forget it before it is found, to measure again: then it is made once more.
        Raises: TransientError where it is gone even then.
        """
        for _ in range(2):
            if (entry := self.store.find(key)) is not None:
                return entry
            make()
        return self.held(key, f"the entry `{key}`")

    def kept(self, key: str, file: str, make: Callable[[], Any]) -> Any:
        """The JSON document that `make` gives, as `file` of a store entry; made where it is not there yet, or
        is to be measured again."""
        key = self.own_key(key)

        def write(into: Path) -> None:
            (into / file).write_text(json.dumps(make()))

        return json.loads((self.store.ensure(key, write) / file).read_text())

    def job(
        self,
        name: str,
        arguments: Mapping[str, Any],
        log: str,
        *,
        limits: Limits | None = None,
        spent_s: float = 0,
        descriptors: Sequence[int] = (),
    ) -> Any:
        """Run one of `stages/jobs.py` in a process of its own, with the workload it is about.

        It finds the heavy imports done, unless it has `limits` of its own: what takes hours needs no haste.
        Of the limit, `spent_s` were used by attempts that were killed.
        """
        shared = {"reference": self.spec.workload, "folder": str(self.folder), "root": str(self.store.root)}
        with writing(self.data_dir):
            return run_isolated(
                f"pareflow.stages.jobs:{name}",
                {**shared, **arguments},
                limits or dataclasses.replace(self.limits, spent=spent_s),
                self.data_dir / "logs" / f"{log}.log",
                descriptors,
                imported=() if limits else IMPORTED,
            )


@dataclass(frozen=True)
class Row:
    """One variant of the run, as tables show it. What is not known (yet) is None."""

    recipe: Recipe
    role: Role = "candidate"
    status: Status = "ok"
    reason: str | None = None
    id: str | None = None
    size_mib: float | None = None
    build_s: float | None = None
    """What building and evaluating it took, whenever that was."""
    quality: Quality | None = None
    measurement: Measurement | None = None
    speedup: Interval | None = None
    speedup_over_eager: Interval | None = None
    verdict: Verdict | None = None
    served: Measurement | None = None
    highest_load_per_s: float | None = None
    fit: Fit | None = None
    """How it fits the device of the target's profile, where there is one."""
    processing: str | None = None
    """The pre- and postprocessing that it was packaged with, in the store; None where it is the run's own."""

    @property
    def threads(self) -> int:
        return int(self.recipe.backend.settings.get("threads", 1))

    @property
    def label(self) -> str:
        """The recipe in words: what differs from the defaults of each step."""
        return " → ".join(member.label for member in members(self.recipe))


def _stated_metric(spec: PipelineSpec) -> str | None:
    return spec.sla.quality.metric if spec.sla.quality else None
