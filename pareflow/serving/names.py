"""Whether a plan is for its model: what it names is there, and its tiers take and give the same."""

from collections.abc import Mapping

from pareflow.catalog import unknown
from pareflow.errors import InputError, SpecError
from pareflow.runtime.caching.semantic_cache import SemanticCache
from pareflow.runtime.calibration import Calibration
from pareflow.runtime.ranking import RankingCascade
from pareflow.runtime.routing import DeadlineRouting
from pareflow.serving.executable import Opened
from pareflow.serving.plan import ServingPlan


def check_names(plan: ServingPlan, main: Opened, tiers: Mapping[str, Opened]) -> None:
    """Raises: SpecError, with every name that is none of theirs, and every policy that would lose outputs."""
    problems = []
    for policy in plan.chosen():
        if isinstance(policy, RankingCascade) and len(main.outputs) > 1:
            given = _named({(tensor.name, tensor.datatype) for tensor in main.outputs})
            problems.append(f"{policy.name}: the scores must be all that its model gives, but got {given}")
        for setting, side, name, tier in policy.tensors():
            holder = main if tier is None else tiers.get(tier)
            if holder is None:
                continue  # the policy itself tells of a tier that is not there
            known = [tensor.name for tensor in getattr(holder, side)]
            if name not in known:
                kind = side.removesuffix("s") + ("" if tier is None else f" of the tier `{tier}`")
                problems.append(f"{policy.name}.{setting}: {unknown(name, known, kind)}")
    if problems:
        raise SpecError(f"the serving plan of {main.release.name}", problems)


def check_alike(plan: ServingPlan, main: Opened, tiers: Mapping[str, Opened]) -> None:
    """Raises: InputError where a tier takes or gives other tensors than the model that it stands in for."""
    encoders = only_encoders(plan)
    for name, tier in tiers.items():
        for side in ("inputs",) if name in encoders else ("inputs", "outputs"):
            ours, theirs = ({(t.name, t.datatype) for t in getattr(one, side)} for one in (main, tier))
            if ours != theirs:
                raise InputError(
                    f"the tier `{name}` must have the {side} of {main.release.name}: {_named(ours)}",
                    f"{tier.release.name} has {_named(theirs)}",
                    "Name a variant of the same model",
                )


def only_encoders(plan: ServingPlan) -> set[str]:
    """The tiers that embed for a semantic cache, and that nothing names to have answers of them."""
    embed, answer = set[str](), set[str]()
    for policy in plan.chosen():
        calibration = getattr(policy, "calibration", None)
        if isinstance(policy, SemanticCache):
            embed |= {policy.encoder} if policy.encoder else set()
        elif isinstance(policy, DeadlineRouting):
            answer |= set(policy.tiers)
        elif isinstance(calibration, Calibration):
            answer |= set(calibration.tiers)
    return embed - answer


def _named(tensors: set[tuple[str, str]]) -> str:
    return ", ".join(f"`{name}` {datatype}" for name, datatype in sorted(tensors))
