"""The production set-up as processes on loopback: PostgreSQL, an S3 server, MLflow, Prefect and a worker.

`python infra/loopback.py FOLDER` starts what `infra/compose.yaml` starts in containers, prints one JSON line
(the environment of a client), and ends all of it when its standard input closes. A line `kill NAME SECONDS`
there kills that process (postgresql, s3, mlflow, prefect, worker) and starts it again after so many seconds.
What ends by itself is started again, as compose does.
Both servers ask for a password; MLflow hands artifacts on, so that clients need no key of the store's.
The servers run in `.servers/`, which `make servers` fills with what the image `server` holds.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVERS = ROOT / ".servers" / "bin" / "python"
START_SECONDS = 300.0
SUPERVISED_SECONDS = 2.0
BUCKET = "mlflow"
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
PREFECT_SERVER = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
}


@dataclass(frozen=True)
class Secrets:
    """The passwords of one set-up, made anew for each."""

    database: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    mlflow: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    prefect: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    store: str = field(default_factory=lambda: secrets.token_urlsafe(16))


@dataclass(frozen=True)
class Started:
    """A process, and what starts it again."""

    process: "subprocess.Popen[bytes]"
    command: list[str]
    env: Mapping[str, str]
    stop: signal.Signals
    ready: Callable[[], object]
    """What it needs once it runs; waits until it does."""


@dataclass(frozen=True)
class Place:
    """Where one set-up lies, how it is left again, and what its clients need to know."""

    folder: Path
    ending: ExitStack
    secret: Secrets
    started: "dict[str, Started]" = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of who starts processes again."""

    def start(
        self,
        name: str,
        command: list[str],
        env: Mapping[str, str],
        stop: signal.Signals = signal.SIGTERM,
        ready: Callable[[], object] = lambda: None,
    ) -> None:
        """A process of its own group, with its log in `FOLDER/NAME.log`; then what `ready` does."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "MLFLOW"))
        }
        with (self.folder / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**inherited, **QUIET, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if name not in self.started:
            self.ending.callback(self.end, name)
        self.started[name] = Started(process, command, env, stop, ready)
        ready()

    def end(self, name: str) -> None:
        """End a process and its group as it wants to be ended, and by force where that takes too long."""
        _end(self.started[name].process, self.started[name].stop)

    def kill(self, name: str, seconds: float) -> None:
        """Kill a process and its group at once, and start it again after so many seconds."""
        with self.lock:
            killed = self.started[name]
            os.killpg(killed.process.pid, signal.SIGKILL)
            killed.process.wait()
            time.sleep(seconds)
            self.again(name)

    def again(self, name: str) -> None:
        """Start what has ended as it was started."""
        ended = self.started[name]
        self.start(name, ended.command, ended.env, ended.stop, ended.ready)

    def supervise(self) -> None:
        """Start again whatever ends by itself: a worker does where Prefect is away."""
        while True:
            time.sleep(SUPERVISED_SECONDS)
            with self.lock:
                for name in [name for name, one in self.started.items() if one.process.poll() is not None]:
                    self.again(name)

    def client(self, mlflow: str, prefect: str) -> dict[str, str]:
        """What a client's environment must say."""
        return {
            **QUIET,
            "MLFLOW_TRACKING_URI": mlflow,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.secret.mlflow,
            "PREFECT_API_URL": f"{prefect}/api",
            "PREFECT_API_AUTH_STRING": f"pareflow:{self.secret.prefect}",
            "PREFECT_HOME": str(self.folder / "prefect-client"),
        }


def _end(process: "subprocess.Popen[bytes]", stop: signal.Signals) -> None:
    for order in (stop, signal.SIGKILL):
        try:
            os.killpg(process.pid, order)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def main() -> None:
    """Start all, say where it is, and do what is asked until nobody listens any more."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for databases, logs and the worker's home; a new one")
    parser.add_argument("--no-worker", action="store_true", help="no worker, and nothing deployed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with running(options.folder, worker=not options.no_worker) as (place, client):
        threading.Thread(target=place.supervise, daemon=True).start()
        print(json.dumps(client), flush=True)
        for order in sys.stdin:
            _, name, seconds = order.split()
            place.kill(name, float(seconds))
            print(f"{name} is started again", flush=True)


@contextmanager
def running(folder: Path, *, worker: bool) -> Iterator[tuple[Place, dict[str, str]]]:
    """The whole set-up while it runs, and the environment of its clients."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ending:
        place = Place(folder.resolve(), ending, Secrets())
        database = _postgresql(place)
        store = _s3(place)
        mlflow, prefect = _mlflow(place, database, store), _prefect(place, database)
        client = place.client(mlflow(), prefect())
        if worker:
            _worker(place, client)
        ending.callback(place.lock.acquire)  # first of all: what is ended now is not started again
        yield place, client


def _postgresql(place: Place) -> str:
    """A cluster with the databases `mlflow`, `auth` and `prefect`; its address, without a scheme."""
    # It refuses to be root's: it runs as Debian's user then, in a folder that this one reaches.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    home, port = Path(tempfile.mkdtemp(prefix="pareflow-postgresql-")), _free_port()
    place.ending.callback(shutil.rmtree, home, ignore_errors=True)
    data, secret = home / "data", home / "password"
    secret.touch(0o600)
    secret.write_text(place.secret.database)
    if user:
        for path in (home, secret):
            shutil.chown(path, "postgres", "postgres")
    binaries = _postgresql_binaries()
    made = [str(binaries / "initdb"), "-D", str(data), "-U", "pareflow", "-A", "scram-sha-256"]
    _run([*user, *made, "--pwfile", str(secret), "-E", "UTF8", "--no-sync"], home)
    secret.unlink()
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    # SIGINT is PostgreSQL's fast shutdown: it waits for no client.
    place.start(
        "postgresql", [*user, str(binaries / "postgres"), "-D", str(data), *settings], {}, signal.SIGINT
    )
    ask = {**os.environ, "PGPASSWORD": place.secret.database}
    asking = [str(binaries / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "pareflow", "-d", "postgres"]
    _until("PostgreSQL", place, lambda: _quietly([*asking, "-c", "select 1"], ask))
    for name in ("mlflow", "auth", "prefect"):
        _run([*asking, "-c", f"create database {name}"], place.folder, ask)
    address = f"pareflow:{place.secret.database}@127.0.0.1:{port}"
    url = place.folder / "postgresql.url"  # for who looks into the database itself, such as a benchmark
    url.touch(0o600)
    url.write_text(f"postgresql://{address}")
    return address


def _postgresql_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        sys.exit(
            "PostgreSQL must be installed, but /usr/lib/postgresql is not there. apt-get install postgresql"
        )
    return found[-1]


def _s3(place: Place) -> Mapping[str, str]:
    """moto's S3 with one bucket; what its clients' environment says."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"

    def bucket() -> None:  # it keeps all in memory: killed, it has lost what it held
        _until("the S3 server", place, lambda: _answers(f"{url}/moto-api/"))
        with urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=30):
            pass

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    place.start("s3", command, {}, ready=bucket)
    return {
        "AWS_ACCESS_KEY_ID": "pareflow",
        "AWS_SECRET_ACCESS_KEY": place.secret.store,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": url,
    }


def _mlflow(place: Place, database: str, store: Mapping[str, str]) -> Callable[[], str]:
    """MLflow on both; the returned function waits until it answers, and gives its URL."""
    port = _free_port()
    auth = place.folder / "auth.ini"
    auth.touch(0o600)
    # A cache of checked passwords: without it each request costs PBKDF2, 0.15 s.
    auth.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = postgresql+psycopg://{database.replace('%', '%%')}/auth\n"
        "admin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    env = {
        **store,
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_AUTH_ADMIN_PASSWORD": place.secret.mlflow,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{database}/mlflow",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes rather than 10
    }
    where = ["--host", "127.0.0.1", "--port", str(port)]
    command = [str(SERVERS), "-m", "mlflow", "server", "--app-name", "basic-auth", *where, "--workers", "2"]
    place.start("mlflow", [*command, "--artifacts-destination", f"s3://{BUCKET}/artifacts"], env)
    return lambda: _answered(place, "mlflow", f"http://127.0.0.1:{port}", "/health")


def _prefect(place: Place, database: str) -> Callable[[], str]:
    port = _free_port()
    env = {
        **PREFECT_SERVER,
        "PREFECT_HOME": str(place.folder / "prefect-server"),
        "PREFECT_SERVER_API_AUTH_STRING": f"pareflow:{place.secret.prefect}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
    }
    where = ["--host", "127.0.0.1", "--port", str(port)]
    place.start("prefect", [str(SERVERS), "-m", "prefect", "server", "start", *where], env)
    return lambda: _answered(place, "prefect", f"http://127.0.0.1:{port}", "/api/health")


def _worker(place: Place, client: Mapping[str, str]) -> None:
    """The pool, everything of prefect.yaml deployed to it, and a process worker."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    told = {**os.environ, **client}
    _run([sys.executable, str(Path(__file__).with_name("work_pools.py")), "pareflow"], ROOT, told)
    _run([*prefect, "deploy", "--all"], ROOT, {**told, "PREFECT_DEFAULT_WORK_POOL_NAME": "pareflow"})
    start = [*prefect, "worker", "start", "--pool", "pareflow", "--type", "process"]
    place.start("worker", start, {**client, "PREFECT_WORKER_QUERY_SECONDS": "1"})


def _answered(place: Place, name: str, url: str, path: str) -> str:
    _until(name, place, lambda: _answers(url + path))
    return url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _until(name: str, place: Place, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(
                f"{name} must answer within {START_SECONDS:.0f} s, but it does not. See {place.folder}/*.log"
            )
        time.sleep(0.2)


def _quietly(command: list[str], env: Mapping[str, str]) -> bool:
    return subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0


def _run(command: list[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
    """Run to the end. Its command line is not told where it fails: it may hold a password."""
    told = {**(env or os.environ), **QUIET}
    done = subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(
            f"{Path(command[0]).name} must succeed, but it said: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


if __name__ == "__main__":
    main()
