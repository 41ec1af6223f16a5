"""Where answers are kept: the interface."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from pareflow.workload import Arrays


class Store(Protocol):
    """Answers by key, for as long as there is room. Never fails: what it cannot give, it does not have."""

    async def get(self, keys: Sequence[bytes]) -> list[Arrays | None]:
        """What is kept under each key, the caller's to change; None where nothing is."""

    def put(self, items: Mapping[bytes, Mapping[str, np.ndarray]]) -> None:
        """Keep these; they stay the caller's. Called inside the event loop."""

    async def flush(self) -> None:
        """Remove all of this endpoint's. Raises: StoreError."""

    async def close(self) -> None:
        """Let go of files and connections."""

    def figures(self) -> Mapping[str, float]: ...


class Backend(Protocol):
    """Bytes by key, outside this process. Every method raises StoreError where it cannot be used."""

    @property
    def label(self) -> str: ...

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    async def write(self, items: Mapping[bytes, bytes]) -> None: ...

    async def clear(self) -> None: ...

    async def close(self) -> None: ...

    def figures(self) -> Mapping[str, float]: ...
