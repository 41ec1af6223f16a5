"""Whether the inputs and outputs that a plan names are those of the model that it is for."""

from collections.abc import Mapping

from pareflow.catalog import unknown
from pareflow.errors import SpecError
from pareflow.serving.executable import Opened
from pareflow.serving.plan import ServingPlan


def check_names(plan: ServingPlan, main: Opened, tiers: Mapping[str, Opened]) -> None:
    """Raises: SpecError, with every name that is none of theirs."""
    opened: dict[str | None, Opened] = {None: main, **tiers}
    problems = []
    for policy in plan.chosen():
        for setting, side, name, tier in policy.tensors():
            if tier not in opened:
                continue  # the policy itself tells of a tier that is not there
            known = [tensor.name for tensor in getattr(opened[tier], side)]
            if name not in known:
                kind = side.removesuffix("s") + ("" if tier is None else f" of the tier `{tier}`")
                problems.append(f"{policy.name}.{setting}: {unknown(name, known, kind)}")
    if problems:
        raise SpecError(f"the serving plan of {main.release.name}", problems)
