"""The network of `configs/stories` as transformers holds it, also inside a larger one: for `decoding.py`.

`python bench/story_models.py FOLDER` writes it as a checkpoint, for `pareflow pack`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pareflow import spec, workload

CONFIG = Path(__file__).parents[1] / "configs" / "stories" / "pipeline.yaml"
KEYS = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "down": "mlp.down_proj",
    "up": "mlp.up_proj",
}
"""Of a block of `configs/stories/network.py`, and the same in a layer of transformers."""
CONTEXT = 512


def write(folder: Path) -> None:
    """The checkpoint of stories260K, as `save_pretrained` writes it. Raises: WorkloadError without it."""
    plain(workload.define(spec.read(CONFIG).workload, CONFIG.parent).network()).save_pretrained(folder)


def plain(network: Any) -> Any:
    """The network as `LlamaForCausalLM`, with the same logits."""
    return inside(network, network.embedding.embedding_dim, len(network.blocks), 0.0)


def inside(network: Any, width: int, layers: int, noise: float, seed: int = 0) -> Any:
    """A Llama of `width` and `layers`, that holds the network in the corner of its random weights.

    `noise`: the spread of a random matrix's products, given inputs of spread 1. At 0 the rest is zeros and
    the logits are the network's; the larger, the less the two agree, while what a token costs stays.
    The idea of a larger network of equal outputs: Chen et al., 2016, arXiv:1511.05641 (Net2Net).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    attention, small = network.blocks[0].attention, network.embedding.embedding_dim
    size = small // attention.heads
    config = LlamaConfig(
        vocab_size=network.embedding.num_embeddings,
        hidden_size=width,
        intermediate_size=network.blocks[0].gate.out_features * width // small,
        num_hidden_layers=layers,
        num_attention_heads=width // size,
        num_key_value_heads=width // size * attention.key_heads // attention.heads,
        head_dim=size,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5 * small / width,  # over the width, of which the rest is zeros
        tie_word_embeddings=network.classifier.weight is network.embedding.weight,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        _spread(model, noise, seed)
        _put(model, network, (small / width) ** 0.5, size)
    model.generation_config.eos_token_id = None  # what is told ends at its length
    return model


def _spread(model: nn.Module, noise: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.normal_(0, 1, generator=chance).mul_(noise / weight.shape[1] ** 0.5)


def _put(model: Any, network: Any, scale: float, size: int) -> None:
    """The network's weights in the corners. `scale` undoes that a mean is taken over more values."""
    _corner(model.model.embed_tokens.weight, network.embedding.weight)
    _corner(model.lm_head.weight, network.classifier.weight)
    _corner(model.model.norm.weight, network.norm.weight * scale)
    for layer, block in zip(model.model.layers, network.blocks, strict=False):
        for ours, theirs in KEYS.items():
            weight = block.get_submodule(ours).weight
            if "query" in ours or "key" in ours:
                weight = _halves(weight, size)
            _corner(layer.get_submodule(theirs).weight, weight * scale if "norm" in ours else weight)


def _corner(target: torch.Tensor, weight: torch.Tensor) -> None:
    target[tuple(slice(length) for length in weight.shape)] = weight


def _halves(weight: torch.Tensor, size: int) -> torch.Tensor:
    """transformers turns the first half of a head's values with the second; llama2.c turns neighbours."""
    return weight.view(-1, size // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
