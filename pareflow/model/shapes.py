"""The shapes of a network's weights, next to another's."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


def first_difference(ours: "nn.Module", theirs: "nn.Module") -> tuple[str, Shape | None, Shape | None] | None:
    """The first weight of another shape in two networks, and both shapes (None where absent); or None."""
    found, wanted = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (ours, theirs))
    differing = (name for name in found | wanted if found.get(name) != wanted.get(name))
    return next(((name, found.get(name), wanted.get(name)) for name in differing), None)
