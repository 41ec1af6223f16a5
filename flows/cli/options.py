"""What commands share: options, exit codes, and how a document is shown."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

DATA = Path(".pareflow")
NOTHING_MET = 3
UNFIT = 4
INTERRUPTED = 130

Config = Annotated[Path, typer.Argument(help="a pipeline YAML")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="where the store, MLflow and reports lie")]
Target = Annotated[
    Path | None, typer.Option("--target", help="a device profile, such as configs/devices/pi5.yaml")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
Orchestrator = Annotated[bool, typer.Option(help="run under Prefect, or as plain functions")]
Logs = Annotated[bool, typer.Option("--verbose", "-v", help="show Prefect's and MLflow's logs")]
Host = Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere")]


def show(document: Any, table: Any, as_json: bool) -> None:
    """The document itself on stdout, or what `table` makes of it for people."""
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        table(document, Console(width=None if sys.stdout.isatty() else 200))


def log(verbose: bool) -> None:
    """What a command that stays logs of itself."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
