"""What a command shows while it goes on."""

import logging
from io import StringIO

from rich.console import Console

from flows.progress import Lines


def test_what_the_package_warns_of_is_a_note_while_a_command_goes_on() -> None:
    log, shown = logging.getLogger("pareflow.hardware.device"), StringIO()
    with Lines(Console(file=shown)):
        log.warning("waiting for %s", "the device `cpu`")
    log.warning("nobody shows this")
    assert shown.getvalue() == "  waiting for the device `cpu`\n"
