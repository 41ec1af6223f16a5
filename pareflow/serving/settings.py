"""Where a server listens, and what it lets in: the operator's settings, which no tuning changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pareflow.serving.request_log import RequestLogSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """Loopback unless told otherwise; port 0 is any that is free.

    `poll_s` is how often the models' sources are asked for another version, None never. Where there are
    `api_keys`, every route but the health checks needs one of them. `standby`: the previous version is kept
    loaded. `unjudged` says what is done with a version that has no verdict of this environment: check what
    can be told without data, or refuse it.
    `requests` says which requests are kept,
    None none; they lie in `requests_folder`, unless it names another.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    body_mib: float = 64
    poll_s: float | None = 1
    api_keys: tuple[str, ...] = ()
    standby: bool = True
    unjudged: Literal["check", "refuse"] = "check"
    requests: RequestLogSettings | None = None
    requests_folder: Path = Path("requests")
