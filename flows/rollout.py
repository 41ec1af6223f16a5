"""What `pareflow deploy` does: the flow `deployment`, under Prefect or as plain functions."""

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.progress import Lines, shown
from pareflow.errors import InputError
from pareflow.serving.traffic import Traffic


@dataclass(frozen=True)
class Steps:
    """What the challenger passes through: shadow alone, then each share of the requests; how long each."""

    shadow: float = 0.5
    canary: tuple[float, ...] = (0.05, 0.25, 0.5)
    minutes: float = 15.0
    disagreement: float | None = None
    """Tolerated; None is the SLA's `quality.max_drop`, which it bounds."""
    slowdown: float = 1.1

    def traffic(self, version: str) -> list[Traffic]:
        """Each step's. Raises: InputError where nothing could be compared, or shares do not grow."""
        shares = [0.0, *self.canary]
        if not 0 < self.shadow <= 1 or sorted(set(shares)) != shares or shares[-1] >= 1:
            raise InputError(
                "a rollout must copy a share of the requests, and answer growing shares below all of them",
                f"got shadow {self.shadow:g}, canary {', '.join(f'{share:g}' for share in self.canary)}",
                "Mend --shadow and --canary",
            )
        return [Traffic(version=version, shadow=self.shadow, canary=share) for share in shares]


def deploy(
    name: str,
    urls: Sequence[str],
    data_dir: Path,
    console: Console,
    steps: Steps,
    *,
    config: Path | None,
    orchestrated: bool,
) -> dict[str, Any]:
    """The challenger before live traffic; the document of what came of it.

    However it ends, the traffic is taken back.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Lines(console) as lines:
        shown.set(lines)
        if not orchestrated:
            from flows.deployment import run_deployment
            from tasks.execution import Plain

            return run_deployment(name, urls, data_dir, Plain(), steps, config)
        from flows.local_server import under_prefect

        with under_prefect(data_dir, meanwhile="flows.deployment"):
            from flows.deployment import deployment

            path = None if config is None else str(config)
            document: dict[str, Any] = deployment(name, list(urls), str(data_dir), path, **asdict(steps))
            return document
