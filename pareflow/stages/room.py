"""Whether the disk has room for what a run is about to make: found out before hours are spent."""

import shutil
from collections.abc import Sequence

from pareflow.compiler.backend import backend_of
from pareflow.errors import EnvironmentUnfitError
from pareflow.stages.building import is_made
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import original_of
from pareflow.variant import digest

COPIES = 2
"""What a network leaves in the store, in sizes of the original: the changed network, and its executable."""


def needed_mib(run: Run, baselines: Sequence[Row], rows: Sequence[Row]) -> float:
    """What making the rows is expected to write. Settings of a runtime take no more: the files of a network
    in one form are there once."""
    held = (row for row in rows if is_made(run, row))
    new = set(map(_files, rows)) - set(map(_files, (*baselines, *held)))
    return COPIES * (original_of(baselines).size_mib or 0) * len(new)


def _files(row: Row) -> str:
    """Names the files that a row needs: its changed network, in the form that its backend takes."""
    backend = backend_of(row.recipe.backend)
    return digest([step.to_json() for step in row.recipe.techniques], backend.form)


def check_room(run: Run, baselines: Sequence[Row], rows: Sequence[Row]) -> None:
    """Raises: EnvironmentUnfitError where the store's disk cannot take what making the rows writes."""
    wanted, free = needed_mib(run, baselines, rows), shutil.disk_usage(run.store.root).free / 2**20
    if wanted > free:
        raise EnvironmentUnfitError(
            f"the disk of {run.store.root} must have room for the first {len(rows)} candidates",
            f"they take about {wanted:.0f} MiB, and {free:.0f} MiB are free",
            "Free some (`pareflow collect --max-gib N` shrinks the store to N GiB), name another folder with "
            "--data-dir, or fewer `candidates`",
        )
