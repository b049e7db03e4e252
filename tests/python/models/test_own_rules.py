"""What neither linears nor transformers' interface of experts describe: rules of our own."""

import pytest
import torch
import transformers
from examine import logits, running_model
from tiny_architectures import architectures

import mlcalib
from mlcalib.models.experts import ExpertList, unfuse_all
from mlcalib.models.fusion import Fusion, RowFusion

CLASSES = ["Dbrx", "JetMoe", "Llama4", "LongcatFlash"]
NAMES = [f"{name}ForCausalLM" for name in CLASSES] + ["Step3p7ForConditionalGeneration"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_gives_the_same_with_its_experts_apart(name):
    ids = torch.arange(24)[None] * 5 % 120
    with torch.random.fork_rng(devices=[]):
        model = running_model(name, architectures()[name], ids, {})
    whole = logits(model, ids)
    unfuse_all(model)
    lists = [each for each in model.modules() if isinstance(each, ExpertList)]
    assert lists
    assert torch.allclose(logits(model, ids), whole, rtol=0, atol=1e-5 * float(whole.abs().max()))
    for each in lists[:2]:  # what they compute is not left out of the comparison
        before = logits(model, ids)
        for _, expert in each.experts():
            expert.down_proj.weight = torch.nn.Parameter(expert.down_proj.weight * -10)
        assert not torch.allclose(logits(model, ids), before, rtol=0, atol=1e-4)


def test_rows_of_experts_are_split_and_joined_again():
    fusion = RowFusion(experts=3, names=("mlp.w1", "mlp.v1", "mlp.w2"))
    whole = {name: torch.randn(12, 6) for name in fusion.fused}
    apart = fusion.split(whole)
    assert apart["2.up_proj.weight"].equal(whole["mlp.v1"][8:])
    assert apart["0.down_proj.weight"].equal(whole["mlp.w2"][:4].T)
    joined = fusion.join(apart)
    assert joined.keys() == whole.keys()
    assert all(joined[name].equal(whole[name]) for name in whole)


def test_experts_without_a_last_linear_keep_their_weights():
    fusion = Fusion(transposed=False, concatenated=True, gate=True, bias=False)
    whole = {"gate_up_proj": torch.randn(3, 8, 6), "down_proj": torch.randn(2, 6, 4)}
    apart = fusion.split(whole)
    assert "2.gate_proj.weight" in apart
    assert "2.down_proj.weight" not in apart
    joined = fusion.join(apart)
    assert all(joined[name].equal(whole[name]) for name in whole)


def test_codes_of_transposed_weights_are_refused(tokenizer):
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.attn\.c_attn and 3 others .*Conv1D"):
        mlcalib.quantize(model, tokenizer=tokenizer, method="rtn", format="gptq", progress=False)
