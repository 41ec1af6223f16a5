"""Level 3, the runtime: the interface of what stands between requests and a loaded executable."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pareflow.catalog import POLICIES, Member
from pareflow.session import Session


class Policy(Member, ABC):
    """A way to serve requests, with its settings. One file per policy."""

    family: ClassVar[dict[str, type[Member]]] = POLICIES

    @abstractmethod
    def wrap(self, session: Session) -> Session:
        """A session that answers as `session` does, by this policy."""
