"""The command line. Exits 0: met and registered; 2: bad input; 3: nothing met the SLA; 4: unfit; 130."""

import gc
import sys

if sys.platform != "linux":  # else the first import that needs what only Linux has ends in a stack trace
    remedy = "Use a virtual machine, a container or WSL 2"
    print(f"error: pareflow must run on Linux, but this is {sys.platform}. {remedy}", file=sys.stderr)
    sys.exit(4)

# What imports make stays to the end, and there is much of it: as often as by default, and once more at the
# end, the collector would take a third of a short command.
gc.set_threshold(50_000, 20, 100)

import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from flows.cli import operating, running, serving  # noqa: E402
from flows.cli.options import INTERRUPTED  # noqa: E402
from pareflow.errors import MissingExtraError, PareflowError  # noqa: E402

app = typer.Typer(
    name="pareflow",
    help="The fastest variant of your model that provably meets its SLA, or a plain no.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for commands in (running, serving, operating):
    app.add_typer(commands.app)


def main() -> None:
    """The console script: every error of ours as one message, with its exit code."""
    try:
        _run()
    except PareflowError as error:
        message = f"[bold red]error:[/bold red] {_escaped(error)}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)  # paths stay whole
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer's for Ctrl-C, which it keeps to itself
            Console(stderr=True).print("interrupted; run it again: what is finished is kept", soft_wrap=True)
        raise
    finally:
        gc.freeze()


def _run() -> None:
    """Run the command. Raises: MissingExtraError where it needs Prefect or MLflow, and cannot import it."""
    try:
        app()
    except ImportError as error:
        name = str(error.name).partition(".")[0]
        if name not in ("mlflow", "prefect"):
            raise
        raise MissingExtraError(
            "this command needs the extra `orchestration`",
            f"`{name}` cannot be imported: {error}",
            "Run `pip install 'pareflow[orchestration]'`",
        ) from error


def _escaped(error: PareflowError) -> str:
    return str(error).replace("[", r"\[")
