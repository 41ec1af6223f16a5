"""Whether the disk has room for what a run is about to make: found out before hours are spent."""

import shutil
from collections.abc import Sequence

from pareflow.errors import EnvironmentUnfitError
from pareflow.stages.building import variant_of
from pareflow.stages.run import Row, Run

COPIES = 2
"""What a candidate leaves in the store, in sizes of the original: the changed network, and its executable."""


def needed_mib(run: Run, rows: Sequence[Row], original_mib: float) -> float:
    """What making the rows is expected to write; those that are made already take no more."""
    ids = {variant_of(row.recipe, run.facts.digest).id for row in rows}
    return COPIES * original_mib * sum(not run.store.holds(key) for key in ids)


def check_room(run: Run, rows: Sequence[Row], original_mib: float) -> None:
    """Raises: EnvironmentUnfitError where the store's disk cannot take what making the rows writes."""
    wanted, free = needed_mib(run, rows, original_mib), shutil.disk_usage(run.store.root).free / 2**20
    if wanted > free:
        raise EnvironmentUnfitError(
            f"the disk of {run.store.root} must have room for the first {len(rows)} candidates",
            f"they take about {wanted:.0f} MiB, and {free:.0f} MiB are free",
            "Free some (`pareflow collect`), name another folder with --data-dir, or fewer `candidates`",
        )
