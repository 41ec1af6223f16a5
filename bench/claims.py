"""One measured claim per row, and how a script of `bench/` prints its rows."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

from pareflow.hardware import probe


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was measured, and whether it holds; `met` is None where it was not measured."""

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
        if self.measured is None:
            return None
        better = self.measured >= self.claimed
        return better if self.side == "at least" else self.measured <= self.claimed

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "met": self.met}


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
        met = {True: "yes", False: "NO", None: "not measured"}[claim.met]
        numbers = (claim.measured, claim.low, claim.high)
        shown = ("" if number is None else f"{number:.3g}" for number in numbers)
        claimed = f"{claim.side} {claim.claimed:g}"
        table.add_row(claim.name, claimed, *shown, claim.unit, str(claim.samples), met, claim.note)
    console.print(table)
