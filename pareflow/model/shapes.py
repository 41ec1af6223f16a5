"""The shapes of a network's weights next to another's, and a network of the same shapes, untrained."""

from typing import TYPE_CHECKING

from pareflow.errors import UnsuitableError
from pareflow.workload import LoadedWorkload, Workload

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


def first_difference(ours: "nn.Module", theirs: "nn.Module") -> tuple[str, Shape | None, Shape | None] | None:
    """The first weight of another shape in two networks, and both shapes (None where absent); or None."""
    found, wanted = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (ours, theirs))
    differing = (name for name in found | wanted if found.get(name) != wanted.get(name))
    return next(((name, found.get(name), wanted.get(name)) for name in differing), None)


def untrained(workload: LoadedWorkload, like: "nn.Module", seed: int) -> "nn.Module":
    """The workload's `network()` with the weights of this seed, to train in the place of `like`.

    Raises: UnsuitableError where `like` has other layers by now, or `network()` comes trained.
    """
    import torch

    from pareflow.torch_network import as_stored

    torch.manual_seed(seed)
    fresh = workload.definition.model_copy(update={"seed": seed}).network()
    assert isinstance(fresh, torch.nn.Module)  # the form is torch
    fresh = as_stored(fresh, list(workload.example(1)))
    if differing := first_difference(like, fresh):
        name, here, there = differing
        raise UnsuitableError(
            "what is trained anew must have the layers of the workload's `network()`",
            f"`{name}` is {here} here and {there} there",
            "Let this be the first step of the recipe",
        )
    weights = zip(fresh.state_dict().values(), like.state_dict().values(), strict=True)
    if type(workload.definition).train is Workload.train or all(torch.equal(*pair) for pair in weights):
        raise UnsuitableError(
            "what is trained anew must have a start that is not trained",
            f"the `network()` of `{type(workload.definition).__name__}` comes trained",
            "Drop the candidate, or give the workload an untrained `network()` and a `train()`",
        )
    return fresh
