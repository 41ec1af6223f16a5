"""Tiny Llamas of random weights, and what is made of them, for tests of decoding and of its server."""

from typing import Any

import torch

CONTEXT = 128


def llama(vocabulary: int, seed: int = 0, **settings: Any) -> Any:
    """Weights so large that the likeliest token is not always the same."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.6,
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **settings},
    )
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def see_the_last_token_alone(model: Any) -> None:
    """Add nothing to what a token is embedded as, and say of every next token that it is as likely."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.lm_head.weight.zero_()
