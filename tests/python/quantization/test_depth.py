"""A deep model takes the memory of a shallow one, if it is quantized from files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from small_tokenizer import make_tokenizer

SHALLOW, DEEP = 4, 8
SIZES = {
    "vocab_size": 384,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SEEING = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 28}


def llava(layers):
    text = transformers.MistralConfig(**SIZES, num_hidden_layers=layers)
    vision = transformers.CLIPVisionConfig(**SEEING, num_hidden_layers=2, patch_size=14)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=3)
    return transformers.LlavaForConditionalGeneration(config)


def gemma4(layers):
    config = transformers.Gemma4TextConfig(
        **SIZES,
        num_hidden_layers=layers,
        num_kv_shared_layers=layers // 2,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        sliding_window=8,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=384,
    )
    return transformers.Gemma4ForCausalLM(config)


def bamba(layers):
    config = transformers.BambaConfig(
        **{name: size for name, size in SIZES.items() if name != "head_dim"},
        num_hidden_layers=layers,
        attn_layer_indices=list(range(1, layers, 2)),
        mamba_n_heads=16,
        mamba_d_head=64,
        mamba_d_state=16,
        mamba_chunk_size=8,
    )
    return transformers.BambaForCausalLM(config)


def qwen3_moe(layers):
    config = transformers.Qwen3MoeConfig(
        **SIZES,
        num_hidden_layers=layers,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
    )
    return transformers.Qwen3MoeForCausalLM(config)


MODELS = {
    "shared keys and values": gemma4,
    "recurrent blocks beside attention": bamba,
    "experts": qwen3_moe,
    "a language model inside of one that sees": llava,
}


def write(make, layers, folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(layers)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return sum(weight.nbytes for weight in model.parameters())


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """Mechanism → bytes of a block, and what the shallow and the deep model take."""
    root = tmp_path_factory.mktemp("depth")
    folders, blocks = [], []
    for index, make in enumerate(MODELS.values()):
        pair = [root / f"{index}-{layers}" for layers in (SHALLOW, DEEP)]
        shallow, deep = (write(make, *at) for at in zip((SHALLOW, DEEP), pair, strict=True))
        blocks.append((deep - shallow) / (DEEP - SHALLOW))
        folders += [pair[0], *pair]  # the first once more, for what a first call loads
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "depth_memory.py"),
        str(root / "out"),
    ]
    # Large tensors are given back when they are let go, so that no later one hides in their place.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*command, *map(str, folders)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout.splitlines()[-1])
    pairs = zip(sizes[1::3], sizes[2::3], strict=True)
    return dict(zip(MODELS, zip(blocks, pairs, strict=True), strict=True))


@pytest.mark.parametrize("mechanism", MODELS)
def test_memory_does_not_grow_with_depth(mechanism, taken):
    """The deep model has four blocks more, of which not one is held."""
    block, (shallow, deep) = taken[mechanism]
    assert shallow > block  # it is seen that a block is held
    assert deep - shallow < block
