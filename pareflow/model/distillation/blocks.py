"""The equal blocks of a network: found, watched, dropped, and bridged where shapes change."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pareflow.errors import UnsuitableError
from pareflow.model.pruning.layers import Block
from pareflow.workload import LoadedWorkload


def find_blocks(network: nn.Module) -> list[str]:
    """The names of the network's blocks, in order: modules of one class, in `Sequential` or `ModuleList`.

    Of several such classes, the one with the most parameters. Raises: UnsuitableError where there is none.
    """
    found: dict[type[nn.Module], list[str]] = {}
    for parent_name, parent in network.named_modules():
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            for name, child in parent.named_children():
                if not isinstance(child, nn.Sequential | nn.ModuleList) and any(child.children()):
                    found.setdefault(type(child), []).append(f"{parent_name}.{name}".lstrip("."))
    several = [names for names in found.values() if len(names) > 1]
    if not several:
        raise UnsuitableError(
            "the network must have blocks: modules of one class, in a Sequential or ModuleList",
            f"{type(network).__name__} has no two of them",
            "Name a student of the workload's `students()`, and layers in `hint_layers`",
        )
    return max(several, key=lambda names: sum(map(_size, map(network.get_submodule, names))))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def first(output: Any) -> torch.Tensor:
    """A block's hidden state: its output, or the first part of it."""
    state: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return state


@contextmanager
def captured(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What these layers give while the network runs, by name."""
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name in names:

            def keep(_: nn.Module, given: Any, output: Any, name: str = name) -> None:
                found[name] = first(output)

            hooks.enter_context(network.get_submodule(name).register_forward_hook(keep))
        yield found


def example(workload: LoadedWorkload) -> list[torch.Tensor]:
    """Inputs of two calibration samples."""
    return [torch.from_numpy(array) for array in workload.example(2).values()]


@dataclass(frozen=True)
class Trace:
    """One pass of real inputs through a network."""

    given: dict[str, torch.Size]
    """The shape that each module takes."""
    made: dict[str, torch.Size]
    """The shape that it gives; in the order in which modules end."""

    @classmethod
    def of(cls, network: nn.Module, workload: LoadedWorkload) -> "Trace":
        trace = cls({}, {})
        with ExitStack() as hooks, torch.no_grad():
            for name, module in network.named_modules():

                def keep(_: nn.Module, given: Any, output: Any, name: str = name) -> None:
                    if isinstance(state := first(output), torch.Tensor):
                        trace.made[name] = state.shape
                    if given and isinstance(given[0], torch.Tensor):
                        trace.given[name] = given[0].shape

                hooks.enter_context(module.register_forward_hook(keep))
            network.eval()(*example(workload))
        return trace


def drop_blocks(network: nn.Module, workload: LoadedWorkload, share: float) -> nn.Module:
    """A copy with about this share of its blocks. Raises: as `dropped`."""
    made = copy.deepcopy(network).eval()
    remove(made, dropped(made, workload, share))
    return made


def dropped(network: nn.Module, workload: LoadedWorkload, share: float) -> list[str]:
    """The names of the blocks that go where about this share of them stays, spread evenly; those that change
    the shape all stay.

    Source: Sanh et al., 2019, arXiv:1910.01108, section 3 (every other layer of the teacher).
    Raises: UnsuitableError where there are no blocks, or none can be dropped.
    """
    names, trace = find_blocks(network), Trace.of(copy.deepcopy(network), workload)
    equal = [name for name in names if trace.given.get(name) == trace.made[name]]
    fixed = len(names) - len(equal)
    kept = max(1, int(share * len(names) + 0.5)) - fixed
    if not 0 <= kept < len(equal):
        raise UnsuitableError(
            "some of the blocks must be dropped, and only such as keep the shape of what they get",
            f"{len(equal)} of {len(names)} like `{names[0]}` do, and `depth` keeps {kept + fixed}",
            f"Set `depth` from {fixed / len(names):.2f} to {(len(names) - 1) / len(names):.2f}, "
            "or name a student of the workload's `students()`",
        )
    stay = {equal[i * len(equal) // kept] for i in range(kept)}
    return [name for name in equal if name not in stay]


def remove(network: nn.Module, names: Sequence[str]) -> None:
    """Take these children out of their lists."""
    for name in reversed(names):
        container, _, key = name.rpartition(".")
        index = list(network.get_submodule(container)._modules).index(key)
        Block(container, index, key).drop(network)


def bridge(given: torch.Size, wanted: torch.Size, between: str) -> nn.Module:
    """A trainable map between hidden states of these shapes; the identity at first, where they are equal.

    Tokens and vectors go through a linear layer; images are averaged, then go through a 1×1 convolution.
    Raises: UnsuitableError where no such map exists.
    """
    if len(given) == len(wanted) == 4 and not (given[2] % wanted[2] or given[3] % wanted[3]):
        window = (given[2] // wanted[2], given[3] // wanted[3])
        convolution = nn.Conv2d(given[1], wanted[1], 1)
        assert convolution.bias is not None  # the default
        nn.init.zeros_(convolution.bias)
        if given[1] == wanted[1]:
            nn.init.dirac_(convolution.weight)
        return convolution if window == (1, 1) else nn.Sequential(nn.AvgPool2d(window), convolution)
    if len(given) == len(wanted) in (2, 3) and given[:-1] == wanted[:-1]:
        linear = nn.Linear(given[-1], wanted[-1])
        nn.init.zeros_(linear.bias)
        if given[-1] == wanted[-1]:
            nn.init.eye_(linear.weight)
        return linear
    raise UnsuitableError(
        "hidden states must have the same axes, and images be as large or a multiple",
        f"{between} have shapes {tuple(given)} and {tuple(wanted)}",
        "Name other layers, or another student",
    )
