"""What `pareflow deploy` does: the flow `deployment`, under Prefect or as plain functions."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.progress import Lines, shown


def deploy(
    name: str,
    urls: Sequence[str],
    data_dir: Path,
    console: Console,
    steps: Mapping[str, Any],
    *,
    config: Path | None,
    orchestrated: bool,
) -> dict[str, Any]:
    """The challenger before live traffic; the document of what came of it.

    `steps` are the settings of `flows.deployment.Steps`. However it ends, the traffic is taken back.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Lines(console) as lines:
        shown.set(lines)
        if not orchestrated:
            from flows.deployment import Steps, run_deployment
            from tasks.execution import Plain

            return run_deployment(name, urls, data_dir, Plain(), Steps(**steps), config)
        from flows.local_server import local_server

        own = local_server(data_dir, meanwhile="flows.deployment")
        with nullcontext() if os.environ.get("PREFECT_API_URL") else own:
            from flows.deployment import deployment

            path = None if config is None else str(config)
            return deployment(name, list(urls), str(data_dir), path, **steps)
