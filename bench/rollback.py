"""`pareflow rollback`, end to end: from the start of the command to the first answer of the previous version.

The server asks the registry every second, and has the previous version loaded. All the while it is asked as
often as it answers: no request may fail, and none is answered by a third version.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from claims import Claim, main
from serving_endurance import registered
from serving_load import ask, free_port, running
from serving_models import rows

from flows.environment import set_environment
from pareflow.serving.load import Post

NAME = "tiny"
ROLLBACKS, QUICKLY = 20, 5
WITHIN_S = 5.0
GIVEN_UP_S = 30.0


@dataclass
class Asked:
    """Every change of the version that answers, with when it was first seen; and what failed."""

    changes: list[tuple[float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    count: int = 0

    def go_on(self, post: Post, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                version = json.loads(ask(post))["model_version"]
            except (OSError, ValueError, KeyError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                continue
            self.count += 1
            if not self.changes or self.changes[-1][1] != version:
                self.changes.append((time.perf_counter(), version))
            time.sleep(0.005)


def rollback(quick: bool) -> Iterator[Claim]:
    """One command after another, each back to what was before."""
    set_environment()
    with tempfile.TemporaryDirectory() as folder:
        point = registered(Path(folder), NAME)
        point("champion", "2")
        point("previous", "1")
        port = free_port()
        command = [sys.executable, "-m", "flows.cli", "serve", f"models:/{NAME}@champion", "--port", port]
        url = f"http://127.0.0.1:{port}/v2/models/{NAME}/infer"
        post = _post(url)
        with running([*command, "--data-dir", folder], url, [post]):
            asked, stop = Asked(), threading.Event()
            thread = threading.Thread(target=asked.go_on, args=(post, stop))
            thread.start()
            time.sleep(5)  # the previous version is loaded meanwhile
            took = [_once(folder, asked) for _ in range(QUICKLY if quick else ROLLBACKS)]
            stop.set()
            thread.join()
    whole, after = [one for one, _ in took], [one for _, one in took]
    middle, answered = statistics.median(whole), statistics.median(after)
    note = f"median {middle:.2f} s, of which the command {middle - answered:.2f} s"
    yield Claim(
        "rollback: start of the command to the first answer, the slowest",
        WITHIN_S,
        max(whole),
        "s",
        len(whole),
        "at most",
        note=note,
    )
    yield Claim(
        "rollback: end of the command to the first answer, the slowest",
        1.5,
        max(after),
        "s",
        len(after),
        "at most",
        note=f"median {answered:.2f} s; below 0 it came before",
    )
    third = [version for _, version in asked.changes if version not in ("1", "2")]
    wrong = [*asked.failed, *third]
    yield Claim(
        "failed or foreign answers",
        0,
        len(wrong),
        "answers",
        asked.count,
        "at most",
        note="; ".join(wrong[:1]),
    )


def _once(folder: str, asked: Asked) -> tuple[float, float]:
    """Seconds to the first answer of the other version: from the start of the command, and from its end."""
    seen, began = len(asked.changes), time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "rollback", NAME, "--data-dir", folder, "--json"]
    subprocess.run(command, check=True, capture_output=True)
    ended = time.perf_counter()
    while len(asked.changes) == seen and time.perf_counter() - ended < GIVEN_UP_S:
        time.sleep(0.005)
    answered = asked.changes[seen][0] if len(asked.changes) > seen else float("inf")
    time.sleep(0.37)  # so that commands do not fall into step with the server's questions
    return answered - began, answered - ended


def _post(url: str) -> Post:
    """A request answered in JSON, which names the version."""
    types = {"int64": "INT64", "float32": "FP32"}
    tensors = [
        {
            "name": name,
            "datatype": types[array.dtype.name],
            "shape": list(array.shape),
            "data": array.ravel().tolist(),
        }
        for name, array in rows(NAME)[0].items()
    ]
    return Post(url, json.dumps({"inputs": tensors}).encode(), {"Content-Type": "application/json"})


if __name__ == "__main__":
    main("Rollback", rollback)
