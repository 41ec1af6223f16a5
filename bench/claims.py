"""One measured claim per row, and how a script of `bench/` prints its rows."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

from pareflow.hardware import probe
from pareflow.intervals import quantile_interval


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was measured with its bounds, and whether it holds (law 3: doubt is no yes)."""

    name: str
    claimed: float
    measured: float | None
    unit: str
    samples: int
    side: Literal["at least", "at most"]
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether both bounds meet it, where the row has them: None where one alone does, which is doubt."""
        if self.measured is None:
            return None
        ends = [self.measured if end is None else end for end in (self.low, self.high)]
        met = {end >= self.claimed if self.side == "at least" else end <= self.claimed for end in ends}
        return met.pop() if len(met) == 1 else None

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "met": self.met}


def of_turns(
    name: str,
    claimed: float,
    values: Sequence[float],
    unit: str,
    side: Literal["at least", "at most"],
    note: str = "",
) -> Claim:
    """The median of some turns and what bounds it at 95 %; of fewer than five the least and the largest do
    not, and are the bounds all the same, as the note says."""
    found = quantile_interval(values, 0.5)
    low, high, told = found.low, found.high, "low and high bound the median"
    if low is None or high is None:
        low, high, told = min(values), max(values), "low and high: the least and the largest turn"
    told = f"{note}; {told}".removeprefix("; ")
    return Claim(name, claimed, found.estimate, unit, len(values), side, low, high, told)


Measure = Callable[[bool], Iterable[Claim]]


def main(description: str, measure: Measure | Mapping[str, Measure]) -> None:
    """The command line of one script: `--json` prints rows, `--quick` takes fewer samples.

    Of several parts, those named there are measured, each with a table of its own; quickly the first alone.
    """
    parts = measure if isinstance(measure, Mapping) else {description: measure}
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    quick = "fewer samples: two minutes, and longer where pipelines are run or networks trained"
    parser.add_argument("--quick", action="store_true", help=quick)
    if len(parts) > 1:
        parser.add_argument("parts", nargs="*", help=f"which of {', '.join(parts)}; none are all")
    options = parser.parse_args()
    names = getattr(options, "parts", []) or (list(parts)[:1] if options.quick else list(parts))
    if missing := set(names) - set(parts):
        parser.error(f"known are {', '.join(parts)}, not {', '.join(missing)}")
    claims = list[Claim]()
    for name in names:
        found = list(parts[name](options.quick))
        claims += found
        if not options.json:
            show(name, found)
    if options.json:
        print(json.dumps([claim.to_json() for claim in claims], indent=1))


def show(title: str, claims: Sequence[Claim]) -> None:
    """The rows as a table, under the machine they were measured on."""
    console = Console(width=160)
    table = Table(title=title, caption=f"{probe.processor()}, {len(probe.cores())} cores")
    for heading in ("claim", "claimed", "measured", "low", "high", "unit", "samples", "met", "note"):
        table.add_column(heading)
    for claim in claims:
        unknown = "not measured" if claim.measured is None else "in doubt"
        met = {True: "yes", False: "NO", None: unknown}[claim.met]
        numbers = (claim.measured, claim.low, claim.high)
        shown = ("" if number is None else f"{number:.3g}" for number in numbers)
        claimed = f"{claim.side} {claim.claimed:g}"
        table.add_row(claim.name, claimed, *shown, claim.unit, str(claim.samples), met, claim.note)
    console.print(table)
