"""Models small enough to run in milliseconds, with every weight random."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    seed: int = 0,
    hidden: int = 64,
    intermediate: int = 128,
    layers: int = 2,
    vocabulary: int = 128,
) -> LlamaForCausalLM:
    """Return a Llama with grouped-query attention. Norms are random too: ones would hide errors."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            # Not model.to(dtype): it would round the rotary frequencies, which loaders keep exact.
            parameter.data = parameter.data.normal_(centre, 0.1).to(dtype)
    model.config.dtype = dtype
    return model.eval()
