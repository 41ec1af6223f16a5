"""A profile as TensorBoard's event file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pareflow.catalog import installed_version
from pareflow.errors import MissingExtraError


def require() -> None:
    """Raises: MissingExtraError where event files cannot be written."""
    if installed_version("tensorboard") is None:
        raise MissingExtraError(
            "`profile.tensorboard` needs the extra `tensorboard`",
            "`tensorboard` is not installed",
            "Run `pip install 'pareflow[tensorboard]'`, or leave the key out",
        )


def write(profile: str, into: str) -> None:
    """One event file in the folder `into`, of the profile that the file `profile` holds as JSON."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(into) as writer:
        for tag, value in scalars(json.loads(Path(profile).read_text())):
            writer.add_scalar(tag, value, 0)


def scalars(profile: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values: the stages' p50 and p99, and each runtime's operators; all in ms."""
    for stage in profile["stages"]:
        yield f"breakdown/{stage['name']}_p50_ms", stage["p50_ms"]
        yield f"breakdown/{stage['name']}_p99_ms", stage["p99_ms"]
    for runtime, rows in profile["operators"].items():
        for row in rows:
            yield f"operators/{runtime}/{row['name']}_ms", row["ms"]
