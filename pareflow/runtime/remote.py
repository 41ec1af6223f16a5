"""A session over HTTP: the tail of a split network on a server, and its head beside the caller.

A request is the named arrays in numpy's own .npz, uncompressed; so is the answer. Standard library and numpy
alone, so that both ends run wherever the core does. It is for a network of one's own: nobody is asked who
they are, and nothing is encrypted.
"""

import http.client
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import urlsplit

import numpy as np

from pareflow.errors import InputError, TransientError
from pareflow.measurement import Ran
from pareflow.session import Session
from pareflow.workload import Arrays

MOST_BYTES = 2**28
"""Of one request: 256 MiB."""


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as one message."""
    message = io.BytesIO()
    np.savez(message, **arrays)  # type: ignore[arg-type]
    return message.getvalue()


def decode(message: bytes) -> Arrays:
    """The named arrays of a message. Raises: ValueError where it is none, or holds what may do harm."""
    try:
        with zipfile.ZipFile(io.BytesIO(message)) as packed:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in packed.infolist()):
                raise ValueError("arrays must not be compressed")
        with np.load(io.BytesIO(message), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        raise ValueError(f"no message of named arrays: {error}") from error


def serve(
    session: Session,
    takes: Sequence[str],
    ready: Callable[[int], None],
    host: str = "127.0.0.1",
    port: int = 0,
) -> None:
    """Answer requests until interrupted; `ready` is told the port once it listens."""

    class Handler(_Handler):
        serves, inputs, turn = session, frozenset(takes), Lock()

    with ThreadingHTTPServer((host, port), Handler) as server:
        server.daemon_threads = True
        ready(server.server_address[1])
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    """GET / says what runs; POST / answers named arrays."""

    protocol_version = "HTTP/1.1"  # the connection stays
    disable_nagle_algorithm = True
    timeout = 60
    serves: Session
    inputs: frozenset[str]
    turn: Lock

    def do_GET(self) -> None:
        self._answer(200, json.dumps(asdict(self.serves.ran())).encode())

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MOST_BYTES:
            self.close_connection = True  # what follows is not read
            self._answer(413, f"`Content-Length` must be at most {MOST_BYTES}, but it is {size!r}".encode())
            return
        try:
            feeds = decode(self.rfile.read(int(size)))
            if feeds.keys() != self.inputs:
                names = f"{sorted(self.inputs)} must be given, but {sorted(feeds)} are"
                raise ValueError(names)
            with self.turn:  # a session answers one at a time
                answers = self.serves.run(feeds)
        except Exception as error:
            self._answer(400, f"{type(error).__name__}: {error}".encode())
            return
        self._answer(200, encode(answers))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (the base class's name)
        """Nothing: a line per request would cost more than some requests do."""


class RemoteSession:
    """A session that another process serves. One connection, kept open."""

    def __init__(self, url: str, seconds: float = 60) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise InputError(
                "a server must be named http://HOST:PORT", f"got {url}", "Name the one that it printed"
            )
        self._url = url
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=seconds)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: TransientError where the server cannot be reached, InputError where it says no."""
        return decode(self._asked("POST", encode(feeds)))

    def ran(self) -> Ran:
        return Ran(**json.loads(self._asked("GET", b"")))

    def close(self) -> None:
        self._connection.close()

    def _asked(self, method: str, body: bytes) -> bytes:
        try:
            self._connection.request(method, "/", body)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request starts anew
            raise TransientError(
                f"the server at {self._url} must answer",
                f"it does not ({type(error).__name__}: {error})",
                "Start it, then try again; or run the whole network on the device",
            ) from error
        if answer.status != 200:
            raise InputError(
                f"the server at {self._url} must accept the request", content.decode(), "Cut both halves anew"
            )
        return content


class SplitSession:
    """Head and tail as one session: what crosses is what the head gives, and inputs that the tail takes."""

    def __init__(self, head: Session | None, tail: Session | None, crossing: Sequence[str]) -> None:
        self._head, self._tail, self._crossing = head, tail, tuple(crossing)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        answers = {} if self._head is None else self._head.run(feeds)
        if self._tail is None:
            return answers
        known = {**feeds, **answers}
        return self._tail.run({name: known[name] for name in self._crossing})

    def close(self) -> None:
        """Close the connection to the server, where there is one."""
        if isinstance(self._tail, RemoteSession):
            self._tail.close()

    def ran(self) -> Ran:
        """Of both halves, the device's first."""
        parts = [half.ran() for half in (self._head, self._tail) if half is not None]
        joined = {name: " | ".join(str(getattr(part, name)) for part in parts) for name in _TOLD}
        return Ran(**joined, threads=parts[0].threads)


_TOLD = ("runtime", "version", "precision", "device", "notes")
