"""Serve the package in a folder, without the command line's registry: `python -m pareflow.serving FOLDER`.

It prints its address once it listens. Where the variable PAREFLOW_API_KEYS holds keys, separated by spaces,
it answers only to those who have one, as `pareflow serve` does. For images of containers.
"""

import argparse
import os
import sys
from pathlib import Path

from pareflow.errors import PareflowError
from pareflow.serving import plan, request_log
from pareflow.serving.server import serve
from pareflow.serving.settings import Settings
from pareflow.serving.slot import FolderSource


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pareflow.serving", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", type=Path, help="a YAML of sessions, policies and limits")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--request-log", type=Path, help="a YAML of which requests are kept; else none are")
    asked = parser.parse_args()
    try:
        chosen = None if asked.plan is None else plan.read(asked.plan)
        kept = None if asked.request_log is None else request_log.read(asked.request_log)
        keys = tuple(os.environ.get("PAREFLOW_API_KEYS", "").split())
        settings = Settings(asked.host, asked.port, poll_s=None, api_keys=keys, requests=kept)
        serve(
            [FolderSource(asked.folder)],
            chosen,
            settings,
            lambda folder: FolderSource(Path(folder)),
            lambda url: print(url, flush=True),
        )
    except PareflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
