"""Versions opened as a plan says: networks with their processing, or causal language models."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack

from pareflow.compiler.worker import Worker
from pareflow.errors import InputError
from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.decoding import Decoding
from pareflow.serving.executable import Executable, Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.language_model import KIND, LanguageModel
from pareflow.serving.model import told
from pareflow.serving.plan import ServingPlan, default

log = logging.getLogger("pareflow.serving")


def opened(
    releases: Mapping[str, Release],
    plan: ServingPlan | None,
    *,
    apart: list[Worker] | None = None,
    models: int = 1,
    most_sessions: int | None = None,
) -> Hosted:
    """Open releases by the name of the tier, the main one's empty; `apart`, that one in a process of its own,
    which is added there. So many `models` share the machine. Networks have `most_sessions` at most, whatever
    the plan says.

    Without a plan it is the default of the main one's package.
    Raises: as `Executable` and `LanguageModel`, once all that was opened is closed; InputError where the plan
    is not for a model of its kind.
    """
    document = told(releases[""].package)
    plan = plan or default(document)
    if document.get("kind") == KIND:
        if apart is not None:
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
    if most_sessions is not None:
        sessions = min(plan.sessions or most_sessions, most_sessions)
        plan = plan.model_copy(update={"sessions": sessions})
    for version in beyond_judged(plan, releases):
        log.warning(
            "answers depend on the samples beside them: %s; lower `max_batch_size`, or state the larger "
            "batch in the SLA",
            version,
        )
    with ExitStack() as opening:
        executables: dict[str, Executable] = {}
        for name, release in releases.items():
            executables[name] = Executable(release, plan, apart=None if name else apart, models=models)
            opening.callback(executables[name].close)
        hosted = Hosted(executables.pop(""), executables, plan)
        opening.pop_all()  # it closes them from now on
    return hosted


def beyond_judged(plan: ServingPlan, releases: Mapping[str, Release]) -> list[str]:
    """Each version, in words, whose answers depend on those beside them and that the plan asks for larger
    batches than it was judged in. Raises: InputError where a package is none."""
    batching = (policy for policy in plan.chosen() if isinstance(policy, DynamicBatching))
    largest = max((policy.max_batch_size for policy in batching), default=1)
    found = []
    for name, release in releases.items():
        judged = told(release.package).get("judged_batch_size")
        if judged is not None and largest > judged:
            tier = f", the tier `{name}`," if name else ""
            found.append(
                f"version {release.version} of {release.name}{tier} was judged in batches of {judged}, and "
                f"the plan makes batches of up to {largest}"
            )
    return found


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
    with ExitStack() as opening:
        tiers: dict[str, LanguageModel] = {}
        for name, release in releases.items():
            if name:
                tiers[name] = LanguageModel(release, plainly)
                opening.callback(tiers[name].close)
        main = LanguageModel(releases[""], decoding, tiers)
        opening.callback(main.close)
        hosted = Hosted(main, tiers, plan)
        opening.pop_all()
    return hosted
