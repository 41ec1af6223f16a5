"""LoadGen's scenarios through a served model: what its callers wait for, HTTP and queue included.

Queries are asked over connections that stay open, each by a thread of its own: with one that is free a query
goes out at once, else it waits, and that counts.
"""

import http.client
import queue
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pareflow.errors import StepFailedError
from pareflow.measuring import loadgen, loadgen_log
from pareflow.measuring.load import Load


@dataclass(frozen=True, slots=True)
class Post:
    """A request as it goes out, made beforehand."""

    url: str
    body: bytes
    headers: Mapping[str, str]


Seen = Callable[[int, int, bytes], None]
"""Told of every answer: the position of its post, its status, its body. Called from many threads."""


def under_load(
    posts: Sequence[Post], load: Load, *, service_s: float, connections: int = 32, seen: Seen | None = None
) -> loadgen_log.Log:
    """The latency of every query, and what LoadGen says of the run.

    `service_s` is about what one request takes when there is no line. Raises: MissingExtraError;
    StepFailedError where an answer is no success, and the number of those.
    """
    lg = loadgen.imported()
    with tempfile.TemporaryDirectory() as out, _Clients(lg, posts, connections, seen) as clients:
        loadgen.run(lg, clients, loadgen.settings(lg, load, service_s), Path(out))
        clients.check()
        return loadgen_log.read(Path(out))


class _Clients:
    """Threads that ask, and the line of queries that they take from."""

    def __init__(self, lg: Any, posts: Sequence[Post], connections: int, seen: Seen | None) -> None:
        self._lg, self.batches, self._seen = lg, posts, seen
        self.requests: queue.SimpleQueue[list[tuple[int, int]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(connections)]
        self._refused: list[str] = []

    def __enter__(self) -> "_Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self.requests.put(None)
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Raises: StepFailedError where a query was not answered as it should."""
        if self._refused:
            raise StepFailedError(
                "every query must be answered",
                f"{len(self._refused)} were not, such as: {self._refused[0]}",
                "Look at the server's log",
            )

    def _ask(self) -> None:
        with ExitStack() as stack:
            address = urlsplit(self.batches[0].url)
            connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
            stack.callback(connection.close)
            while (samples := self.requests.get()) is not None:
                for name, index in samples:
                    self._post(connection, index)
                    self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(name, 0, 0)])

    def _post(self, connection: http.client.HTTPConnection, index: int) -> None:
        post = self.batches[index]
        try:
            connection.request("POST", urlsplit(post.url).path, post.body, dict(post.headers))
            answer = connection.getresponse()
            content = answer.read()
            if self._seen is not None:
                self._seen(index, answer.status, content)
            if answer.status != 200:
                self._refused.append(f"{answer.status} {content[:200]!r}")
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # the next query opens it again
            self._refused.append(f"{type(error).__name__}: {error}")
