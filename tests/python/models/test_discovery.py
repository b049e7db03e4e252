"""Adapters that are discovered: they say what the family files say, and what blocks do."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import ARCHITECTURES, tiny_llama, tiny_model
from small_tokenizer import make_tokenizer
from tiny_architectures import architectures, tiny_models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import mlcalib
from mlcalib.models import adapter_for, find_adapter
from mlcalib.models.arguments import Arguments
from mlcalib.models.discovery import discover
from mlcalib.models.discovery.synthetic import on_meta, synthetic
from mlcalib.models.experts import unfuse, unfuse_all
from mlcalib.models.fusion import Fusion
from mlcalib.models.running import call_block, embed, first_output

IDS = torch.arange(24)[None] * 5 % 120


def in_common(name):
    """Return a linear's name as Mixtral's files would not have it."""
    for own, common in ((".w1", ".gate_proj"), (".w3", ".up_proj"), (".w2", ".down_proj")):
        name = name.replace(own, common) if ".experts." in name else name
    return name


def readers(adapter, block):
    return {tuple(map(in_common, each)) for each in adapter.linears_of(block).values()}


def groups(adapter, block):
    linears = adapter.linears_of(block)
    found = [
        (
            in_common(group.source),
            sorted(in_common(name) for key in group.inputs for name in linears[key]),
            sorted(group.readers),
            group.offset,
        )
        for group in adapter.scale_groups_of(block)
    ]
    return sorted(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_discovery_says_what_the_family_files_say(name):
    model = tiny_model(name)
    family, discovered = find_adapter(type(model).__name__), discover(model)
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    unfuse(one, family)
    unfuse_all(other)
    mine, theirs = discovered.named_blocks(other), family.named_blocks(one)
    assert [block for block, _ in mine] == [block for block, _ in theirs]
    for (_, block), (_, like) in zip(mine, theirs, strict=True):
        assert readers(discovered, block) == readers(family, like)
        assert groups(discovered, block) == groups(family, like)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2_moe"])
def test_nothing_is_read_of_the_weights(name):
    model = tiny_model(name)
    assert discover(on_meta(model)) == discover(model)


def test_made_up_weights_take_no_memory_and_keep_ties():
    model = on_meta(tiny_llama(tied=True, hidden=512, intermediate=2048))
    made = synthetic(model)
    down = made.model.layers[0].mlp.down_proj.weight
    assert down.shape == (512, 2048)
    assert down.untyped_storage().nbytes() < 0.02 * down.numel() * down.element_size()
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert torch.isfinite(made(input_ids=IDS).logits).all()


def runs_block_by_block(model, ids):
    """Return what the last block gives when blocks are run one by one, for two sequences."""
    own = copy.deepcopy(model).eval()
    adapter = discover(own)
    unfuse_all(own)
    arguments, states = Arguments(adapter, lambda _: torch.device("cpu")), {}
    with torch.no_grad():
        for index, each in enumerate(ids):
            states[index], inputs = embed(own, adapter, each[None])
            arguments.catch(index, inputs)
        for name, block in adapter.named_blocks(own):
            for index, state in states.items():
                call_block(block, state, arguments.of(name, index, keeps=True))  # leaves no trace
                output = call_block(block, state, arguments.of(name, index))
                states[index] = first_output(output)
                arguments.hand_over(index, output)
    return adapter, states


def last_hidden(model, adapter, ids):
    """Return what the last block gives when the model runs as it is."""
    seen = []
    block = model.get_submodule(adapter.names[-1])
    handle = block.register_forward_hook(lambda *call: seen.append(first_output(call[-1])))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "handed", "filled"),
    [
        ("Gemma4ForCausalLM", set(), {"shared_kv_states"}),
        ("GlmMoeDsaForCausalLM", {"prev_topk_indices"}, set()),
        ("DeepseekV4ForCausalLM", set(), set()),  # blocks read the token ids
        ("GptOssForCausalLM", set(), set()),
        ("BambaForCausalLM", set(), set()),
        ("Qwen3_5ForConditionalGeneration", set(), set()),
    ],
)
def test_blocks_get_what_the_model_gives_them(name, handed, filled):
    model = next(
        made for _, made in tiny_models(name, architectures()[name]) if isinstance(made, nn.Module)
    )
    ids = torch.randint(3, 250, (2, 16), generator=torch.Generator().manual_seed(3))
    adapter, states = runs_block_by_block(model, ids)
    assert set(adapter.handed_over) == handed
    assert adapter.filled == filled
    for index, each in enumerate(ids):
        expected = last_hidden(model, adapter, each[None])
        torch.testing.assert_close(states[index], expected, rtol=1e-4, atol=1e-5)


class Loud(LlamaForCausalLM):
    """A Llama that a test makes up, whose MLP also reads how loud each token is."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.gain_proj = nn.Linear(
                config.hidden_size, config.intermediate_size, bias=False
            )
            layer.mlp.forward = Loud.mlp.__get__(layer.mlp)
        self.post_init()

    def mlp(self, x):
        return self.down_proj(
            self.act_fn(self.gate_proj(x)) * self.up_proj(x) * torch.tanh(self.gain_proj(x))
        )


def test_a_new_family_needs_no_line(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=360,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = Loud(config).eval()
    adapter = adapter_for(model)
    assert adapter.linears_of(model.model.layers[1])["mlp.gate_proj"] == (
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.gain_proj",
    )
    assert [group.source for group in adapter.scale_groups_of(model.model.layers[0])] == [
        "input_layernorm",
        "self_attn.v_proj",
        "post_attention_layernorm",
        "mlp.up_proj",
    ]
    texts = {"en": IDS.repeat(2, 1).tolist(), "sw": (IDS + 7).tolist()}
    calibration = mlcalib.calibration(None, corpus=texts, seq_len=24)
    for method in ("gptq", "awq"):
        ours = mlcalib.quantize(
            model,
            calibration,
            method=method,
            tokenizer=make_tokenizer(),
            group_size=16,
            progress=False,
            format="dense",
        )
        assert len(ours.linears) == 2 * 8
        assert set(ours.losses["model.layers.1.mlp.gain_proj"]) == {"en", "sw"}
        ours.save(tmp_path / method)
        again = Loud.from_pretrained(tmp_path / method).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(IDS).logits, ours.model(IDS).logits)


def test_experts_that_no_token_chooses_are_looked_at_in_the_place_of_others():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **{"vocab_size": 120, "hidden_size": 64, "intermediate_size": 48, "head_dim": 16},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"num_experts": 200, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    )
    model = Qwen3MoeForCausalLM(config).eval()
    adapter = discover(model)
    unfuse_all(model)
    found = {group.source: group for group in adapter.scale_groups_of(model.model.layers[0])}
    assert found["mlp.experts.199.up_proj"].inputs == ("mlp.experts.199.down_proj",)
    assert len(found["post_attention_layernorm"].inputs) == 200


@given(
    transposed=st.booleans(),
    concatenated=st.booleans(),
    gate=st.booleans(),
    bias=st.booleans(),
    experts=st.integers(1, 4),
)
def test_experts_are_split_and_joined_again(transposed, concatenated, gate, bias, experts):
    fusion = Fusion(transposed, concatenated, gate, bias)
    hidden, inner = 6, 4
    rows = 2 * inner if gate else inner
    first, last = (experts, rows, hidden), (experts, hidden, inner)
    if transposed:
        first, last = (experts, hidden, rows), (experts, inner, hidden)
    shapes = {fusion.fused[0]: first, "down_proj": last}
    shapes |= {f"{fusion.fused[0]}_bias": (experts, rows), "down_proj_bias": (experts, hidden)}
    whole = {name: torch.randn(shapes[name]) for name in fusion.fused}
    apart = fusion.split(whole)
    assert apart["0.up_proj.weight"].shape == (inner, hidden)
    assert apart["0.down_proj.weight"].shape == (hidden, inner)
    joined = fusion.join(apart)
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


def test_what_blocks_share_is_not_scaled_and_has_one_first_place():
    model = tiny_llama()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    adapter = discover(model)
    shared = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert adapter.places == {f"model.layers.1.{name}": f"model.layers.0.{name}" for name in shared}
    for block in model.model.layers:
        linears = adapter.linears_of(block).values()
        assert shared <= {name for names in linears for name in names}
        assert all("mlp" not in group.source for group in adapter.scale_groups_of(block))
        assert "input_layernorm" in {group.source for group in adapter.scale_groups_of(block)}


def test_what_cannot_be_done_is_said():
    twice = tiny_llama()
    layers = twice.model.layers
    forward = layers[0].forward
    layers[0].forward = lambda *args, **kwargs: forward(forward(*args, **kwargs), **kwargs)
    assert discover(twice).names == ("model.layers.0", "model.layers.1")
    wants_more = tiny_llama()
    wants_more.forward = lambda pixel_values, **_: pixel_values
    with pytest.raises(NotImplementedError, match="token ids alone"):
        discover(wants_more)
