"""A store that machines share, behind an S3-compatible server.

`objects/<sha256>` holds files by their content; `entries/<key>` is an entry: the manifest that `store.py`
wrote, under a digest of its own. It is written last, and only where there is none: what was half sent counts
as absent, and of two makers the first wins. `leases/<key>` keeps others from beginning what one has begun.

The server must know conditional writes (If-None-Match, If-Match), as Amazon's, MinIO, Ceph and R2 do. Where
it is and who may use it is told by the usual variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_REGION, …
"""

import functools
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from pareflow.errors import (
    BusyMachineError,
    InputError,
    MissingExtraError,
    PareflowError,
    StoreError,
    TransientError,
)
from pareflow.hardware.device import INTERRUPTED
from pareflow.hardware.waits import WAITS
from pareflow.store import MANIFEST, Store
from pareflow.variant import file_digest, text_digest

if TYPE_CHECKING:
    from obstore.store import S3Store

VARIABLE = "PAREFLOW_STORE"
"""The environment variable that names the URL; child processes and the nodes of a cluster inherit it."""

LEASE_S = 30.0
"""A lease that nobody renewed for so long is of a dead holder: by the waiter's clock, from what it saw."""

RENEWED_S = 5.0

_NO_CREDENTIALS = ("credentials", "http://169.254.")
"""Signs that the client found no credentials, and that nobody told it any where cloud machines ask."""


def opened(root: Path) -> Store:
    """The store in a folder, with the shared one behind it where the environment names one.

    Raises: StoreError, InputError, MissingExtraError.
    """
    url = os.environ.get(VARIABLE)
    return Store(root, _remote(url) if url else None)


def check() -> None:
    """Raises: PareflowError unless the shared store that the environment names can be read and written."""
    url = os.environ.get(VARIABLE)
    if url:
        with _remote(url).alone("check"):
            pass


class Remote:
    """Entries at `s3://bucket/prefix`.

    Everything raises: TransientError where the server does not answer, StoreError where it refuses.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.hostname or "@" in parts.netloc:
            raise InputError(
                "the shared store must be named as `s3://bucket/prefix`, without credentials",
                f"its scheme is `{parts.scheme}`" if parts.scheme != "s3" else "it is not",
                f"Mend --store or {VARIABLE}; credentials are told by AWS_ACCESS_KEY_ID and its like",
            )
        self.url = url
        self._objects = _client(url)

    def fetch(self, key: str, into: Path) -> bool:
        """Whether there is such an entry: then its files and its manifest are in `into`, verified.

        A damaged one counts as absent, and is forgotten, so that it can be sent again.
        """
        with self._talking():
            manifest = self._manifest(key)
            if manifest is None:
                return False
            for name, sha256 in json.loads(manifest)["files"].items():
                path = _within(into, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if not self._download(f"objects/{sha256}", path) or file_digest(path) != sha256:
                    self._delete(f"entries/{key}")
                    self._delete(f"objects/{sha256}")
                    return False
            (into / MANIFEST).write_text(manifest)
            return True

    def send(self, key: str, folder: Path) -> bool:
        """Send a sealed entry; False where another was there first, which stands."""
        from obstore.exceptions import AlreadyExistsError

        manifest = (folder / MANIFEST).read_text()
        with self._talking():
            for name, sha256 in json.loads(manifest)["files"].items():
                if self._tag(f"objects/{sha256}") is None:
                    self._objects.put(f"objects/{sha256}", folder / name)
            try:
                self._objects.put(f"entries/{key}", _sealed(manifest), mode="create")
            except AlreadyExistsError:
                return False
            return True

    def forget(self, key: str) -> None:
        with self._talking():
            self._delete(f"entries/{key}")

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Hold the key alone among machines; waits for whoever holds it, but for no dead one.

        A holder that could not renew its lease may find that another has begun the same.
        Raises: BusyMachineError where it is interrupted while it waits.
        """
        path, holder, over = f"leases/{key}", uuid4().hex, threading.Event()
        with self._talking(), WAITS.waiting():
            tag = self._taken(path, holder)
        renewing = threading.Thread(target=self._renew, args=(path, holder, tag, over), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            with suppress(PareflowError), self._talking():  # it ends by itself, too
                if self._tag_held(path, holder) is not None:
                    self._delete(path)

    def _taken(self, path: str, holder: str) -> str:
        """The tag of our lease, once it is ours. Raises: BusyMachineError where it is interrupted."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        seen, since = None, 0.0
        while True:
            with suppress(AlreadyExistsError):
                return _tag_of(self._objects.put(path, _word(holder), mode="create"))
            tag = self._tag(path)
            if tag != seen:
                seen, since = tag, time.monotonic()
            elif tag is not None and time.monotonic() - since > LEASE_S:
                with suppress(PreconditionError):  # else another waiter was quicker
                    return _tag_of(self._objects.put(path, _word(holder), mode={"e_tag": tag}))
            if INTERRUPTED.is_set():
                raise BusyMachineError(
                    f"{path} of {self.url} must be free",
                    "another machine makes that entry",
                    "Run the command again when that has ended",
                )
            time.sleep(min(RENEWED_S, LEASE_S) / 5)

    def _renew(self, path: str, holder: str, tag: str, over: threading.Event) -> None:
        """Renew a lease for as long as it is ours, as it is where an answer of the server was lost, too."""
        from obstore.exceptions import BaseError, PreconditionError

        while not over.wait(RENEWED_S):
            with suppress(BaseError, FileNotFoundError):
                try:
                    tag = _tag_of(self._objects.put(path, _word(holder), mode={"e_tag": tag}))
                except PreconditionError:
                    held = self._tag_held(path, holder)
                    if held is None:
                        return  # it was late: another has it
                    tag = held

    def _tag_held(self, path: str, holder: str) -> str | None:
        """The tag of a lease that is this holder's; None where it is gone, or another's."""
        try:
            found = self._objects.get(path)
        except FileNotFoundError:
            return None
        return _tag_of(found.meta) if bytes(found.bytes()).startswith(holder.encode()) else None

    def _manifest(self, key: str) -> str | None:
        """The manifest of an entry; None where there is none, or it is damaged, which is then forgotten."""
        try:
            sealed = bytes(self._objects.get(f"entries/{key}").bytes())
        except FileNotFoundError:
            return None
        manifest = sealed.decode(errors="replace").partition("\n")[2]
        if sealed == _sealed(manifest):
            return manifest
        self._delete(f"entries/{key}")
        return None

    def _download(self, name: str, path: Path) -> bool:
        try:
            chunks = self._objects.get(name).stream()
        except FileNotFoundError:
            return False
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        return True

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._objects.delete(name)

    def _tag(self, name: str) -> str | None:
        """What tells one content of an object from another; None where there is none."""
        try:
            return _tag_of(self._objects.head(name))
        except FileNotFoundError:
            return None

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn what the client raises into errors of ours; its first line holds no key."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except FileNotFoundError as error:
            if error.filename is not None:
                raise  # a file of ours
            must = f"the bucket of {self.url} must be there"
            raise StoreError(must, "there is none", "Make it, or name another") from error
        except BaseError as error:
            said = str(error).strip().splitlines()[0][:300]
            refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
            if refused or any(sign in said for sign in _NO_CREDENTIALS):
                raise _refused(self.url, said) from error
            raise TransientError(
                f"the shared store {self.url} must answer",
                said,
                "Run the same command again; what is finished is kept",
            ) from error


def _refused(url: str, said: str) -> StoreError:
    return StoreError(
        f"the shared store {url} must be ours to read and write",
        said,
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL where it is not Amazon's",
    )


@functools.cache
def _remote(url: str) -> Remote:
    return Remote(url)


def _client(url: str) -> "S3Store":
    """Raises: MissingExtraError."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise MissingExtraError(
            "a shared store needs the extra `s3`",
            "`obstore` is not installed",
            "Run `pip install 'pareflow[s3]'`",
        ) from error
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return S3Store.from_url(
        url,
        client_options={"allow_http": plain, "connect_timeout": "5s", "timeout": "1h"},
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=60)},
    )


def _within(folder: Path, name: str) -> Path:
    """The path of an entry's file. Raises: StoreError where another's manifest points out of its folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise StoreError(
            "an entry's files must lie in its folder",
            f"one is named `{name}`",
            "Look who writes to the store",
        )
    return path


def _tag_of(answer: Any) -> str:
    return str(answer["e_tag"])


def _sealed(manifest: str) -> bytes:
    return f"{text_digest(manifest)}\n{manifest}".encode()


def _word(holder: str) -> bytes:
    """The content of a lease: whose it is, and each renewal is told from the one before."""
    return f"{holder} {uuid4().hex}".encode()
