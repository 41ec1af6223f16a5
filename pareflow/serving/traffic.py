"""What share of a model's requests its challenger gets, and which ones: an operator's settings."""

import hashlib
import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pareflow.catalog import problem
from pareflow.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]


class Traffic(BaseModel):
    """The challenger's traffic. Which requests it gets is drawn by their key: equal ones get one answer.

    Who is in a small share is in every larger one of the same version; another version draws others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: str = Field(description="the challenger: a version of the model")
    shadow: Share = Field(
        default=0, description="share of the requests that the other version answers too, in the background"
    )
    canary: Share = Field(default=0, description="share of the requests that the challenger answers")
    patience_ms: float = Field(
        default=1000, gt=0, description="what the challenger has not answered by then, the champion does"
    )
    until: float | None = Field(
        default=None, description="seconds since 1970 when it ends by itself; left out, it stays"
    )

    def flows(self) -> bool:
        """Whether the challenger gets any request now."""
        return bool(self.shadow or self.canary) and (self.until is None or time.time() < self.until)

    def draws(self, kind: Literal["shadow", "canary"], key: bytes) -> bool:
        """Whether a request with this key is one of the share."""
        share: float = getattr(self, kind)
        return share > 0 and _place(f"{kind} {self.version}", key) < share


def read(text: str) -> Traffic:
    """The settings as a registry keeps them. Raises: InputError."""
    try:
        return Traffic.model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            "the traffic of a challenger must be settings that can be",
            "; ".join(problem(one, Traffic.model_fields) for one in error.errors()),
            "Set it by `pareflow deploy`",
        ) from error


def _place(salt: str, key: bytes) -> float:
    """Where a request stands between 0 and 1: evenly, and the same in every process."""
    found = hashlib.sha256(salt.encode() + b"\0")
    found.update(key)
    return int.from_bytes(found.digest()[:8], "big") / 2**64
