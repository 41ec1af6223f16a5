"""Networks that are trained anew begin from weights of a seed, never from trained ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pareflow import network
from pareflow.errors import UnsuitableError
from pareflow.model.distillation.born_again import BornAgain
from pareflow.model.pruning import LotteryTicket
from pareflow.model.shapes import untrained
from pareflow.network import Form
from pareflow.workload import LoadedWorkload, Workload, define

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], dict[Form, Path]]


def drawn(workload: LoadedWorkload) -> LoadedWorkload:
    """The workload whose `network()` seeds nothing."""

    class Drawn(type(workload.definition)):  # type: ignore[misc]
        def network(self) -> nn.Module:
            state = torch.random.get_rng_state()
            made: Any = super().network()
            torch.random.set_rng_state(state)
            for module in made.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            return made  # type: ignore[no-any-return]

    return replace(workload, definition=Drawn())


def head(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.head.weight.detach()
    return weight


@pytest.mark.parametrize("by_itself", [True, False], ids=["seeds itself", "seeds nothing"])
def test_untrained_network_is_its_seeds(by_itself: bool, load_tiny: Load, forms: Forms) -> None:
    workload = load_tiny("images") if by_itself else drawn(load_tiny("images"))
    trained = network.load("torch", forms("images")["torch"])
    found = [head(untrained(workload, trained, seed)) for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    theirs = define(
        {"file": {"path": "images.py", "settings": {"seed": 3}}}, load_tiny("images").definition.folder
    )
    assert not by_itself or torch.equal(found[0], head(theirs.network()))


@pytest.mark.parametrize(
    ("technique", "seed"),
    [
        pytest.param(BornAgain(epochs=1, learning_rate=1e-12, seed=3), 4, id="born_again, after its parent"),
        pytest.param(
            LotteryTicket(rounds=1, epochs=1, sparsity=1e-6, learning_rate=1e-12, seed=3),
            3,
            id="lottery_ticket",
        ),
    ],
)
@pytest.mark.parametrize("by_itself", [True, False], ids=["seeds itself", "seeds nothing"])
def test_what_is_trained_anew_begins_from_its_own_seed(
    technique: Any, seed: int, by_itself: bool, load_tiny: Load, forms: Forms
) -> None:
    """At a rate that moves nothing."""
    workload = load_tiny("images") if by_itself else drawn(load_tiny("images"))
    trained = network.load("torch", forms("images")["torch"])
    torch.manual_seed(8)
    ended = technique.apply(trained, workload)
    assert torch.allclose(head(ended), head(untrained(workload, trained, seed)), atol=1e-6)


@pytest.mark.parametrize("trains", [True, False], ids=["has its weights", "does not train"])
def test_start_that_comes_trained_is_refused(trains: bool, load_tiny: Load, forms: Forms) -> None:
    """Also where the network that is given was changed meanwhile, so that weights tell nothing."""
    workload, trained = load_tiny("images"), network.load("torch", forms("images")["torch"])
    base = type(workload.definition)

    class Downloaded(base):  # type: ignore[misc,valid-type]
        train = base.train if trains else Workload.train

        def network(self) -> nn.Module:
            loaded: nn.Module = network.load("torch", forms("images")["torch"])
            return loaded

    if not trains:
        trained.head.weight.data[0] = 0
    with pytest.raises(UnsuitableError, match=r"the `network\(\)` of `Downloaded` comes trained"):
        untrained(replace(workload, definition=Downloaded()), trained, 1)
