"""`bench/decoding.py`: what transformers is handed gives the network's logits; whose cache is claimed."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")


@pytest.fixture
def models(bench: Callable[[str], Any]) -> Any:
    return bench("story_models")


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


def test_the_cache_that_is_claimed_is_ours(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = importlib.import_module("decoding")
    model = SimpleNamespace(num_parameters=lambda: 1e6)
    monkeypatch.setattr(decoding, "_setting", lambda: (model, model, np.zeros((8, 64), int)))
    monkeypatch.setattr(decoding, "_network", lambda: None)
    monkeypatch.setattr(models, "inside", lambda *_: model)
    monkeypatch.setattr(decoding, "Generation", lambda *_: None)
    seconds = {"none": 6.0, "stock": 2.0, "ours": 1.0}

    def answered(ways: Any, rows: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
        return np.array([[seconds[way] for way in ways]]), [dict.fromkeys(ways)]

    monkeypatch.setattr(decoding, "_answered", answered)
    ratio, _, *_ = decoding.cached(True)
    assert ratio.measured == 6
    assert ratio.name.startswith("our KV cache over transformers' without one")
    assert "one over none: 3.00" in ratio.note
