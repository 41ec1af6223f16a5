"""A server that says what a test wants, byte by byte."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replying(reply: bytes) -> Iterator[str]:
    """The URL of a socket that sends this to whoever asks, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_reply, args=(server, reply), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)  # whoever waits for the next one ends


def _reply(server: socket.socket, reply: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(65536)
            connection.sendall(reply)
