"""Which MLflow registries may hold versions of what is in a data folder's store. Asks none of them.

The embedded one, the one that the environment names, and every server that a version was registered with from
here: a shell that lacks MLFLOW_TRACKING_URI must not take its models for forgotten.
"""

import os
import re
from pathlib import Path

from pareflow import store

FILE = "registries.txt"


def embedded(data_dir: Path) -> str:
    """The address of the data folder's own MLflow, whether it is there or not."""
    return f"sqlite:///{data_dir.resolve() / 'mlflow' / 'mlflow.db'}"


def named() -> str | None:
    """The registry that the environment names."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")


def remember(data_dir: Path, uri: str) -> None:
    """Note that a version is registered there; call it under a lock, before there is one.

    It is noted without user and password, which an older version's file may still have.
    """
    path = data_dir / FILE
    before = path.read_text() if path.exists() else ""
    noted = [] if uri == embedded(data_dir) else [without_secrets(uri)]
    after = "".join(f"{one}\n" for one in dict.fromkeys([*_remembered(data_dir), *noted]))
    if after != before:
        store.replace(path, after)  # whoever reads it takes no lock


def known(data_dir: Path) -> list[str]:
    """Every registry to ask, each once: the environment's as it is named there, with its password."""
    own = [embedded(data_dir)] if (data_dir / "mlflow" / "mlflow.db").exists() else []
    found: dict[str, str] = {}
    for uri in (*own, *filter(None, [named()]), *_remembered(data_dir)):
        found.setdefault(without_secrets(uri), uri)
    return list(found.values())


def without_secrets(uri: str) -> str:
    """An address as it may be written down: without user and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", uri)


def _remembered(data_dir: Path) -> list[str]:
    """Without secrets, whatever the file holds."""
    path = data_dir / FILE
    return [without_secrets(uri) for uri in path.read_text().splitlines()] if path.exists() else []
