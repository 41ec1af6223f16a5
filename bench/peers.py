"""What `optimize` chooses beside what other tools make of the same network, in one run on this machine.

Each tool's file is made in an environment of its own (`peer_files.py`), judged on the verdict split by the
same gate, each alone, and timed in one arena with the winner and ONNX Runtime fp32. A peer's row is met where
it is no slower than that, and loses no more than the SLA allows; its note says which clauses it misses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from claims import Claim, main
from peer_files import PEERS, QUICK, Peer, make
from pipeline_run import DATA_DIR, as_row, ended
from recipes import PATIENT

from pareflow import spec
from pareflow.errors import PareflowError
from pareflow.gate import Decision, judge
from pareflow.intervals import speedup
from pareflow.measurement import Interval
from pareflow.sla import Objective
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import objective_value
from pareflow.stages.validation import evidence, validate

CONFIGS = Path(__file__).parents[1] / "configs"
WORKLOADS = ("digits", "fashion", "intent")
FASTER = 1.5
"""How many times as fast as the fastest peer the winner should be, and on how many workloads."""
OFTEN = 2
BEATEN = Interval(0.0, 0.0, 0.0, 1)
"""How many times as fast as a peer that meets the SLA we are where we have nothing that does."""


@dataclass(frozen=True)
class Comparison:
    """One workload: the winner, None where nothing met the SLA, and each peer, judged side by side."""

    workload: str
    recipe: str
    objective: Objective
    winner: Row | None
    peers: dict[str, Row]

    @property
    def fastest(self) -> str | None:
        """The fastest peer that meets the SLA."""
        return self._fastest("promote")

    @property
    def doubtful(self) -> str | None:
        """The fastest peer where that is one of which the gate cannot tell."""
        first = self._fastest("promote", "inconclusive")
        return None if first == self.fastest else first

    def _fastest(self, *decisions: Decision) -> str | None:
        hopeful = [
            name for name, row in self.peers.items() if row.verdict and row.verdict.decision in decisions
        ]
        return min(hopeful, key=lambda name: objective_value(self.objective, self.peers[name]), default=None)

    def over(self, peer: str | None) -> Interval | None:
        """How many times as fast as a peer the winner is: 0 where the peer alone meets the SLA.

        None where neither does, or there is no such peer.
        """
        if peer is None:
            return None
        if self.winner is None or not _passed(self.winner):
            return BEATEN if _passed(self.peers[peer]) else None
        ours, theirs = self.winner.measurement, self.peers[peer].measurement
        return speedup(theirs, ours) if ours and theirs else None


def measure(workload: str, found: list[Comparison], quick: bool) -> Iterator[Claim]:
    """One workload's rows; its comparison joins those `found`. `quick` takes ONNX Runtime's own tools."""
    try:
        found.append(compare(workload, QUICK if quick else PEERS))
    except PareflowError as error:
        yield _over_fastest(workload, None, f"{error.must}, but {error.found}")
    else:
        yield from _claims(found[-1])


def compare(workload: str, peers: Sequence[Peer]) -> Comparison:
    """The pipeline's winner from a run of it, if any, the peers' files, and one validation of all of them.

    Raises: PareflowError where the pipeline does not end, or its baselines fail.
    """
    config = CONFIGS / workload / "pipeline.yaml"
    document, winner = ended(config, remeasure=False)
    pipeline = spec.read(config).model_copy(update={"budget": PATIENT})
    run = Run.open(pipeline, config, DATA_DIR).aside()
    baselines = [as_row(one) for one in document["variants"] if one["role"] in ("baseline", "original")]
    made = [make(run, peer, baselines[0]) for peer in peers]
    ours = [] if winner is None else [as_row(winner)]
    entered = {row.id: row for row in (*baselines, *ours, *made) if row.status == "ok"}
    rows = validate(run, list(entered.values()))
    judged = {row.id: row for row in rows} | alone(run, rows)
    names = [peer.name for peer in peers]
    compared = dict(zip(names, (judged.get(row.id, row) for row in made), strict=True))
    recipe, best = ("none", None) if winner is None else (winner["recipe"], judged[winner["id"]])
    return Comparison(workload, recipe, pipeline.objective, best, compared)


def alone(run: Run, rows: Sequence[Row]) -> dict[str | None, Row]:
    """The rows by their ids, each judged as if no other had been: whoever uses one tool asks of one variant.

    Holm's correction among all of these would turn peers down that pass, the more so the more there are.
    """
    alive = [row for row in rows if row.status == "ok"]
    measured = {str(row.id): row.measurement for row in alive if row.measurement is not None}
    return {
        row.id: replace(row, verdict=judge(run.spec.sla, evidence(run, row, alive, measured)))
        for row in alive
    }


def _claims(found: Comparison) -> Iterator[Claim]:
    """The rows of one workload."""
    if found.winner is not None:
        yield from _judged(f"{found.workload}, {found.recipe}", found.winner)
    for name, row in found.peers.items():
        yield from _judged(f"{found.workload}, {name}", row)
    note = "no peer meets the SLA" if found.fastest is None else f"{found.fastest} is the fastest"
    if found.fastest is not None and (lacking := _missed(found.winner)):
        note = f"{note}; ours: {lacking}"
    yield _over_fastest(found.workload, found.over(found.fastest), note)
    if found.doubtful is not None:
        name = f"{found.workload}: winner over {found.doubtful}, of which the gate cannot tell"
        yield _claim(name, 1, found.over(found.doubtful), "faster than those that pass")


def _judged(name: str, row: Row) -> Iterator[Claim]:
    """What a variant gained and lost, and how it stands to the SLA."""
    note = _missed(row) or "meets the SLA"
    if row.measurement is not None:
        ran = row.measurement.ran
        note = f"{note}; ran {ran.precision} on {ran.runtime} {ran.version}"
    yield _claim(f"{name}: speed over ORT fp32", 1, row.speedup, note)
    checks = () if row.verdict is None else row.verdict.checks
    for check in checks:
        if check.clause == "quality.max_drop":
            yield Claim(
                f"{name}: lost",
                check.limit,
                check.estimate,
                "share",
                check.samples,
                "at most",
                check.low,
                check.high,
            )


def _over_fastest(workload: str, faster: Interval | None, note: str) -> Claim:
    return _claim(f"{workload}: winner over the fastest peer that meets the SLA", 1, faster, note)


def _claim(name: str, claimed: float, found: Interval | None, note: str) -> Claim:
    """Its samples are the loads that the interval is of."""
    if found is None:
        return Claim(name, claimed, None, "×", 0, "at least", note=note)
    return Claim(name, claimed, found.estimate, "×", found.samples, "at least", found.low, found.high, note)


def often(found: Sequence[Comparison], _: bool) -> Iterator[Claim]:
    """On how many workloads the winner is much faster, by the lower bound; one where no peer passes does not
    count, nor does one that was not compared just now; one where only a peer passes counts as not faster."""
    gained = [gain for one in found if (gain := one.over(one.fastest)) is not None]
    much = sum((gain.low or 0) >= FASTER for gain in gained)
    name = f"workloads of {len(WORKLOADS)} where the winner is at least {FASTER:g}× the fastest passing peer"
    yield Claim(name, OFTEN, much if found else None, "workloads", len(gained), "at least")


def _passed(row: Row) -> bool:
    return row.verdict is not None and row.verdict.decision == "promote"


def _missed(row: Row | None) -> str:
    """Why there is no variant, or the clauses that it misses; empty where it meets the SLA."""
    if row is None:
        return "nothing met the SLA"
    return row.reason or (f"misses the SLA: {row.verdict.missed}" if row.verdict and not _passed(row) else "")


if __name__ == "__main__":
    compared = list[Comparison]()
    parts = {workload: partial(measure, workload, compared) for workload in WORKLOADS}
    main("peers", {**parts, "together": partial(often, compared)})
