"""The shared store, on a real server that speaks S3: whole entries or none, and nothing is made twice."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pareflow import remote_store
from pareflow.errors import (
    BusyMachineError,
    InputError,
    MissingExtraError,
    StoreError,
    TransientError,
    VariantError,
)
from pareflow.hardware.device import INTERRUPTED
from pareflow.hardware.waits import WAITS
from pareflow.remote_store import Remote, opened
from pareflow.store import MANIFEST, Store

exceptions = pytest.importorskip("obstore.exceptions")
moto = pytest.importorskip("moto.server")
KEY = "0123456789abcdef"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret"}


class Server:
    """An S3 server with one bucket, and what it holds as bytes."""

    def __init__(self) -> None:
        self._server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop()

    @property
    def bucket(self) -> Any:
        import boto3

        bucket = boto3.resource("s3", endpoint_url=self.url, region_name="us-east-1").Bucket("bucket")
        bucket.create()
        return bucket

    def objects(self) -> dict[str, bytes]:
        return {found.key: found.get()["Body"].read() for found in self.bucket.objects.all()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    for name, value in {**CREDENTIALS, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": made.url}.items():
        monkeypatch.setenv(name, value)
    remote_store._remote.cache_clear()
    made.bucket.objects.all().delete()  # moto's servers have one memory
    yield made
    made.stop()


@pytest.fixture
def stores(server: Server, tmp_path: Path) -> Callable[[str], Store]:
    """The store of a machine by its name, all with the same one behind."""
    return lambda name: Store(tmp_path / name, Remote("s3://bucket/shared"))


def writer(text: str = "abc") -> Callable[[Path], None]:
    def write(into: Path) -> None:
        (into / "sub").mkdir()
        (into / "sub" / "file").write_text(text)
        (into / "other").write_bytes(b"\0" * 100)

    return write


def never(into: Path) -> None:
    raise AssertionError("what another machine had finished was made again")


def text(entry: Path | None) -> str:
    assert entry is not None
    return (entry / "sub" / "file").read_text()


def test_what_one_machine_made_another_finds(stores: Callable[[str], Store], server: Server) -> None:
    made = stores("one").ensure(KEY, writer())
    found = stores("two").find(KEY)
    assert text(found) == "abc"
    assert found == stores("two").root / "entries" / KEY
    assert text(stores("three").ensure(KEY, never)) == text(made)
    server.stop()
    assert text(stores("two").find(KEY)) == "abc"  # what is here asks nobody


def test_what_nobody_made_is_absent(stores: Callable[[str], Store]) -> None:
    assert stores("one").find(KEY) is None
    assert list((stores("one").root / "making").iterdir()) == []


def test_a_failed_maker_leaves_nothing_and_lets_others_begin(
    stores: Callable[[str], Store], server: Server
) -> None:
    def write(into: Path) -> None:
        (into / "half").write_text("half")
        raise VariantError("it must work", "it does not", "Give up")

    with pytest.raises(VariantError):
        stores("one").ensure(KEY, write)
    assert server.objects() == {}
    assert text(stores("two").ensure(KEY, writer())) == "abc"


def test_what_is_forgotten_is_made_again_everywhere(stores: Callable[[str], Store]) -> None:
    stores("one").ensure(KEY, writer("old"))
    stores("one").evict(KEY)
    assert stores("two").find(KEY) is None
    assert text(stores("one").ensure(KEY, writer("new"))) == "new"
    assert text(stores("two").find(KEY)) == "new"


def test_without_its_manifest_an_entry_is_absent(stores: Callable[[str], Store], server: Server) -> None:
    """The manifest is sent last: this is what a maker leaves that is killed while it sends."""
    stores("one").ensure(KEY, writer())
    server.bucket.Object(f"shared/entries/{KEY}").delete()
    assert len(server.objects()) == 2
    assert stores("two").find(KEY) is None
    assert text(stores("two").ensure(KEY, writer())) == "abc"
    assert text(stores("three").find(KEY)) == "abc"


def test_a_file_that_is_gone_makes_the_entry_absent(stores: Callable[[str], Store], server: Server) -> None:
    stores("one").ensure(KEY, writer())
    name = next(name for name, content in server.objects().items() if content == b"abc")
    server.bucket.Object(name).delete()
    assert stores("two").find(KEY) is None
    assert text(stores("two").ensure(KEY, writer())) == "abc"
    assert text(stores("three").find(KEY)) == "abc"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_is_noticed_and_mended(
    stores: Callable[[str], Store], server: Server, data: st.DataObject
) -> None:
    """Of a file or of the manifest, at any place: the manifest has a digest of its own."""
    stores("one").evict(KEY)
    stores("one").ensure(KEY, writer())
    name, content = data.draw(st.sampled_from(sorted(server.objects().items())))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    server.bucket.put_object(Key=name, Body=bytes(damaged))
    other = stores("two")
    other_entry = other.root / "entries" / KEY
    assert not other_entry.exists()
    assert other.find(KEY) is None
    assert text(other.ensure(KEY, writer())) == "abc"
    other.remote = None
    other.evict(KEY)
    assert text(stores("two").find(KEY)) == "abc"  # as it was sent again
    other.evict(KEY)


def test_of_two_makers_the_first_wins_and_both_have_its_files(stores: Callable[[str], Store]) -> None:
    """As where a lease was lost: both made the entry, each with other bytes."""
    one, two = stores("one"), stores("two")

    def write(into: Path) -> None:
        one._made(KEY, writer("first"))
        writer("second")(into)

    assert text(two.ensure(KEY, write)) == "first" == text(one.find(KEY))


def made_once(stores: Callable[[str], Store], takes_s: float) -> None:
    """Three machines want an entry that takes so long to make: one makes it."""
    made, found = [], []

    def slowly(into: Path) -> None:
        made.append(into)
        time.sleep(takes_s)
        writer()(into)

    threads = [
        threading.Thread(target=lambda name=name: found.append(stores(name).ensure(KEY, slowly)))
        for name in ("one", "two", "three")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert [text(entry) for entry in found] == ["abc"] * 3


def test_two_machines_at_once_make_an_entry_once(stores: Callable[[str], Store]) -> None:
    made_once(stores, 1)


def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    stores: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "LEASE_S", 3.0)
    monkeypatch.setattr(remote_store, "RENEWED_S", 0.2)
    made_once(stores, 3.5)


class Forgetful:
    """A server whose answer to a renewal is lost once: what the client then raises comes in its place."""

    def __init__(self, objects: Any, error: Exception) -> None:
        self._objects, self._errors = objects, [error]
        self.renewals = 0  # that were written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def put(self, path: str, content: Any, **options: Any) -> Any:
        answer = self._objects.put(path, content, **options)
        if isinstance(options.get("mode"), dict):
            self.renewals += 1
            if self._errors:
                raise self._errors.pop()
        return answer


@pytest.mark.parametrize("error", ["PreconditionError", "GenericError"])
def test_a_lease_is_renewed_further_where_an_answer_was_lost(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """The client that sends it again meets its own write; else the next renewal does."""
    monkeypatch.setattr(remote_store, "RENEWED_S", 0.05)
    remote = Remote("s3://bucket/shared")
    objects: Any = Forgetful(remote._objects, getattr(exceptions, error)("lost"))
    remote._objects = objects
    with remote.alone(KEY):
        deadline = time.monotonic() + 20
        while objects.renewals < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert objects.renewals >= 4
    assert server.objects() == {}


def test_a_lease_that_another_took_is_not_renewed_and_not_taken_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "RENEWED_S", 0.05)
    with Remote("s3://bucket/shared").alone(KEY):
        server.bucket.put_object(Key=f"shared/leases/{KEY}", Body=b"of another")
        time.sleep(0.5)
    assert server.objects() == {f"shared/leases/{KEY}": b"of another"}


def test_a_dead_holders_lease_ends_by_itself(
    stores: Callable[[str], Store], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "LEASE_S", 0.3)
    server.bucket.put_object(Key=f"shared/leases/{KEY}", Body=b"of one who was killed")
    assert text(stores("one").ensure(KEY, writer())) == "abc"
    assert not [name for name in server.objects() if "leases" in name]


def test_waiting_for_another_machine_is_no_time_of_its_own(
    stores: Callable[[str], Store], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_store, "LEASE_S", 0.3)
    server.bucket.put_object(Key=f"shared/leases/{KEY}", Body=b"of one who was killed")
    before = WAITS.seconds
    stores("one").ensure(KEY, writer())
    assert WAITS.seconds - before > 0.3


def test_who_is_interrupted_waits_for_no_machine(
    stores: Callable[[str], Store], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.bucket.put_object(Key=f"shared/leases/{KEY}", Body=b"of one who works")
    monkeypatch.setattr(INTERRUPTED, "is_set", lambda: True)
    with pytest.raises(BusyMachineError, match="another machine makes that entry"):
        stores("one").ensure(KEY, never)
    assert f"shared/leases/{KEY}" in server.objects()


def test_a_server_that_is_down_is_worth_another_try(stores: Callable[[str], Store], server: Server) -> None:
    store = stores("one")
    server.stop()
    with pytest.raises(TransientError, match=r"s3://bucket/shared must answer") as caught:
        store.find(KEY)
    assert caught.value.exit_code == 4
    with pytest.raises(TransientError):
        store.ensure(KEY, never)


def test_a_server_that_goes_while_an_entry_is_made_leaves_none(
    stores: Callable[[str], Store], server: Server
) -> None:
    def write(into: Path) -> None:
        writer()(into)
        server.stop()

    with pytest.raises(TransientError):
        stores("one").ensure(KEY, write)
    assert not (stores("one").root / "entries" / KEY).exists()


def test_what_could_not_be_sent_is_sent_the_next_time_and_not_made_again(
    stores: Callable[[str], Store], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training takes hours; the server may refuse or be away just when it has ended. Its lease is left."""
    monkeypatch.setattr(remote_store, "LEASE_S", 1.0)
    test_a_server_that_goes_while_an_entry_is_made_leaves_none(stores, server)
    assert text(stores("one").root / "unsent" / KEY) == "abc"
    back = Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", back.url)
    assert back.bucket.name == "bucket"
    assert text(stores("one").ensure(KEY, never)) == "abc" == text(stores("two").find(KEY))
    assert list((stores("one").root / "unsent").iterdir()) == []
    back.stop()


def test_what_another_sent_meanwhile_stands(stores: Callable[[str], Store], server: Server) -> None:
    """What could not be sent before is not needed then."""
    stores("one").ensure(KEY, writer("another's"))
    two = stores("two")
    two._sealed(KEY, writer("own"))
    assert text(two.ensure(KEY, never)) == "another's"
    assert list((two.root / "unsent").iterdir()) == []


def test_without_credentials_the_error_says_which_and_shows_none(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Store(tmp_path, Remote("s3://bucket/shared")).find(KEY)


def test_no_error_shows_a_credential(stores: Callable[[str], Store], server: Server) -> None:
    store = stores("one")
    server.stop()
    with pytest.raises(TransientError) as caught:
        store.find(KEY)
    for value in CREDENTIALS.values():
        assert value not in str(caught.value)


def test_a_bucket_that_is_not_there_is_said(server: Server, tmp_path: Path) -> None:
    store = Store(tmp_path, Remote("s3://another/shared"))
    with pytest.raises(StoreError, match="the bucket of s3://another/shared must be there"):
        store.ensure(KEY, never)


@pytest.mark.parametrize("url", ["bucket", "http://bucket/x", "s3:///x", "s3://an-id:a-secret@bucket/x"])
def test_another_url_is_bad_input_and_not_shown(url: str) -> None:
    with pytest.raises(InputError, match="s3://bucket/prefix") as caught:
        Remote(url)
    assert "a-secret" not in str(caught.value)


def test_an_entry_cannot_write_outside_its_folder(
    stores: Callable[[str], Store], server: Server, tmp_path: Path
) -> None:
    stores("one").ensure(KEY, writer())
    manifest = json.loads((stores("one").root / "entries" / KEY / MANIFEST).read_text())
    evil = json.dumps({"files": {"../../../evil": manifest["files"]["sub/file"]}})
    server.bucket.put_object(Key=f"shared/entries/{KEY}", Body=remote_store._sealed(evil))
    with pytest.raises(StoreError, match="must lie in its folder"):
        stores("two").find(KEY)
    assert not (tmp_path / "evil").exists()


def test_the_environment_names_it_for_child_processes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(tmp_path / "one").remote is None
    remote_store.check()
    monkeypatch.setenv(remote_store.VARIABLE, "s3://bucket/shared")
    remote_store.check()
    opened(tmp_path / "one").ensure(KEY, writer())
    code = "from pareflow.remote_store import opened\nfrom pathlib import Path\n"
    code += f"print(opened(Path('two')).find('{KEY}'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"two/entries/{KEY}"


def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingExtraError, match=r"pareflow\[s3\]"):
        Remote("s3://bucket/shared")
