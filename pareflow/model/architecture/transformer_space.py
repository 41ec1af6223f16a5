"""The parts of a transformer that a search may leave out: heads, neurons, layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from pareflow.model.architecture.space import Pick, Space
from pareflow.model.pruning.layers import Block

SHARES = (0.25, 0.5, 0.75, 1.0)
NEURONS = 8
"""Kept neurons are a multiple of this."""


def counts(size: int, multiple: int = 1) -> tuple[int, ...]:
    """What the shares leave of so many, to the nearest multiple: one at least, all at most; ascending."""
    kept = (max(1, int(share * size / multiple + 0.5)) * multiple for share in SHARES[:-1])
    return (*sorted({count for count in kept if count < size}), size)


@dataclass(frozen=True)
class Part:
    """The heads of an attention, or the neurons of a feed-forward layer; `ranked` are they, the best first.

    Each has `channels` outputs of every layer of `givers`, and as many inputs of every one of `takers`, all
    of them `nn.Linear`. `name` is that of the attention, or of the layer that gives the neurons.
    """

    name: str
    heads: bool
    channels: int
    givers: tuple[str, ...]
    takers: tuple[str, ...]
    ranked: tuple[int, ...]

    @property
    def options(self) -> tuple[int, ...]:
        return counts(len(self.ranked), 1 if self.heads else NEURONS)

    def stay(self, count: int) -> list[int]:
        """The channels of the best ones, in order."""
        best = sorted(self.ranked[:count])
        return [one * self.channels + i for one in best for i in range(self.channels)]

    def within(self, block: Block) -> bool:
        return all(layer.startswith(f"{block.name}.") for layer in self.givers)


@dataclass(frozen=True)
class TransformerArchitecture:
    """What of a transformer is left: the blocks that go, and how many heads or neurons stay of each part."""

    gone: tuple[Block, ...]
    kept: tuple[tuple[Part, int], ...]

    @property
    def label(self) -> str:
        return " ".join(["transformer", *(f"-{block.name}" for block in self.gone), *self._counts()])

    def _counts(self) -> Iterator[str]:
        for kind, heads in (("heads", True), ("neurons", False)):
            found = [str(count) for part, count in self.kept if part.heads == heads]
            if found:
                yield f"{kind} {':'.join(found)}"


@dataclass(frozen=True)
class TransformerSpace(Space[TransformerArchitecture]):
    """All networks that are left of a transformer when some of its blocks, heads and neurons go.

    A network takes the first of each in the order of their worth. `stacks` are the blocks of one list each,
    the best first. Source: Hou et al., 2020, arXiv:2004.04037, section 2 (widths and depths of a trained
    transformer); Wang et al., 2020, arXiv:2005.14187, section 3.1 (each layer chooses for itself).
    """

    stacks: tuple[tuple[Block, ...], ...]
    parts: tuple[Part, ...]

    def choose(self, pick: Pick) -> TransformerArchitecture:
        gone = [
            block
            for stack in self.stacks
            for block in stack[pick(f"layers of {stack[0].container}", counts(len(stack))) :]
        ]
        kept = [(part, pick(part.name, part.options)) for part in self.parts]
        return TransformerArchitecture(
            tuple(sorted(gone, key=lambda block: (block.container, block.index))),
            tuple((part, count) for part, count in kept if not any(map(part.within, gone))),
        )
