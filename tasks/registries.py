"""Which MLflow registries may hold versions of what is in a data folder's store. Asks none of them.

The embedded one, the one that the environment names, and every server that a version was registered with from
here: a shell that lacks MLFLOW_TRACKING_URI must not take its models for forgotten.
"""

import os
import re
from pathlib import Path

FILE = "registries.txt"


def embedded(data_dir: Path) -> str:
    """The address of the data folder's own MLflow, whether it is there or not."""
    return f"sqlite:///{data_dir.resolve() / 'mlflow' / 'mlflow.db'}"


def named() -> str | None:
    """The registry that the environment names."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")


def remember(data_dir: Path, uri: str) -> None:
    """Note that a version is registered there; call it under a lock, before there is one."""
    if uri not in {embedded(data_dir), *_remembered(data_dir)}:
        with (data_dir / FILE).open("a") as file:
            file.write(f"{uri}\n")


def known(data_dir: Path) -> list[str]:
    """Every registry to ask, each once."""
    own = [embedded(data_dir)] if (data_dir / "mlflow" / "mlflow.db").exists() else []
    return list(dict.fromkeys([*own, *filter(None, [named()]), *_remembered(data_dir)]))


def without_secrets(uri: str) -> str:
    """An address as it may be written down: without user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def _remembered(data_dir: Path) -> list[str]:
    path = data_dir / FILE
    return path.read_text().splitlines() if path.exists() else []
