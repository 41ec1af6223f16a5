"""`bench/story_models.py`: what it hands to transformers gives the network's logits."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")


@pytest.fixture
def models(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(checkout / "bench")
    return importlib.import_module("story_models")


@pytest.fixture(params=[300, -300], ids=["tied", "untied"])
def network(request: pytest.FixtureRequest, checkout: Path) -> Any:
    """That of `configs/stories`, tiny, at random: 4 heads of 8 values, 2 of keys."""
    found = importlib.util.spec_from_file_location("network", checkout / "configs" / "stories" / "network.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    torch.manual_seed(0)
    made = module.Llama(module.Sizes(32, 44, 2, 4, 2, request.param, 16)).eval()
    for weight in made.parameters():
        weight.data += 0.2 * torch.randn(weight.shape)
    return made


@torch.no_grad()
def test_transformers_gives_the_networks_logits(models: Any, network: Any) -> None:
    tokens = torch.randint(0, 300, (2, 9))
    torch.testing.assert_close(models.plain(network)(tokens).logits, network(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_larger_one_gives_them_too_without_noise_and_others_with_it(models: Any, network: Any) -> None:
    tokens = torch.randint(0, 300, (2, 9))
    large = models.inside(network, 96, 5, 0.0)
    assert large.num_parameters() > 8 * sum(weight.numel() for weight in network.blocks.parameters())
    torch.testing.assert_close(large(tokens).logits, network(tokens), rtol=1e-4, atol=1e-4)
    noisy = models.inside(network, 96, 5, 0.3)(tokens).logits
    assert 0.02 < (noisy - network(tokens)).std() / network(tokens).std() < 2
    assert torch.equal(noisy, models.inside(network, 96, 5, 0.3)(tokens).logits)
    assert not torch.equal(noisy, models.inside(network, 96, 5, 0.3, seed=1)(tokens).logits)
