"""How a causal language model is decoded."""

from pydantic import BaseModel, ConfigDict, Field


class Decoding(BaseModel):
    """What may be set; of what is answered, none changes it but `max_new_tokens`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_new_tokens: int = Field(default=128, ge=1, description="tokens of an answer that asks for no number")
    max_waiting: int = Field(default=256, ge=1, description="requests in line; more are refused")
    prefix_mib: float = Field(default=64, ge=0, description="the most that kept prefixes take; 0 keeps none")
    draft: str | None = Field(
        default=None, description="the model that drafts tokens, by name, or `prompt_lookup`; else none does"
    )
    draft_length: int | None = Field(default=None, ge=1, le=16, description="tokens per draft; else tuned")
    automatic: bool = Field(default=True, description="whether drafting is left off where it loses")
    max_loss: float = Field(
        default=0.01, gt=0, le=0.1, description="share of the time that finding out whether it loses may cost"
    )
