"""Versions opened as a plan says: networks with their processing, or causal language models."""

from collections.abc import Mapping

from pareflow.errors import InputError
from pareflow.runtime.decoding import Decoding
from pareflow.serving.executable import Executable, Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.language_model import KIND, LanguageModel
from pareflow.serving.model import told
from pareflow.serving.plan import ServingPlan


def opened(releases: Mapping[str, Release], plan: ServingPlan, *, apart: bool = False) -> Hosted:
    """Open releases by the name of the tier, the main one's empty; `apart`, that one in a process of its own.

    Raises: as `Executable` and `LanguageModel`; InputError where the plan is not for a model of its kind.
    """
    if told(releases[""].package).get("kind") == KIND:
        if apart:
            raise InputError(
                "what is tried beside another version must take raw samples",
                f"{releases[''].name} is a language model",
                "Promote it where it was judged otherwise",
            )
        return _language_model(releases, plan)
    if plan.decoding is not None:
        raise InputError(
            "`decoding` must be for a causal language model",
            f"{releases[''].name} is none",
            "Leave it out of the plan",
        )
    executables = {
        name: Executable(release, plan, apart=apart and not name) for name, release in releases.items()
    }
    return Hosted(executables.pop(""), executables, plan)


def _language_model(releases: Mapping[str, Release], plan: ServingPlan) -> Hosted:
    """Decoded in one session. Nothing stands before it unless the plan says so: rows that are joined would
    wait for the longest. Raises: InputError."""
    for name, release in releases.items():
        if told(release.package).get("kind") != KIND:
            raise InputError(
                f"the tier `{name}` of a language model must be one too",
                f"{release.name} is none",
                "Name another, made by `pareflow pack`",
            )
    if plan.sessions not in (None, 1):
        raise InputError(
            "a language model is decoded in one session", f"`sessions` is {plan.sessions}", "Leave it out"
        )
    if "policies" not in plan.model_fields_set:
        plan = plan.model_copy(update={"policies": ()})
    decoding = plan.decoding or Decoding()
    plainly = decoding.model_copy(update={"draft": None})
    tiers = {name: LanguageModel(release, plainly) for name, release in releases.items() if name}
    return Hosted(LanguageModel(releases[""], decoding, tiers), tiers, plan)
