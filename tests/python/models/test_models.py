"""Adapters, and blocks run one by one."""

import pytest
import torch
from small_models import ARCHITECTURES, tiny_llama, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from mlcalib.models import GgufArchitecture, adapters, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.loading import architecture, check_source, load_model, load_tokenizer
from mlcalib.models.running import embed, run_block, run_to_input, watching

IDS = torch.arange(24)[None] % 100


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture
def adapter():
    return find_adapter("LlamaForCausalLM")


def test_every_linear_of_every_block_is_named_once(model, adapter):
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    names = [name for name, _ in adapter.named_linears(model)]
    assert len(names) == len(expected)
    assert set(names) == expected


def test_every_module_of_the_package_is_a_family():
    assert all(adapter.architectures for adapter in adapters())
    assert len(list(adapters())) == 7


def test_the_error_names_all_architectures():
    prefixes = {prefix for prefix, _ in ARCHITECTURES.values()}
    with pytest.raises(NotImplementedError) as error:
        find_adapter("Unheard")
    assert all(f"{prefix}ForCausalLM" in str(error.value) for prefix in prefixes)
    assert {name for adapter in adapters() for name in adapter.architectures} == {
        f"{prefix}ForCausalLM" for prefix in prefixes
    }


def test_unknown_architecture_names_the_file_to_add():
    with pytest.raises(NotImplementedError, match=r"GPT2LMHeadModel.*models/families/llama\.py"):
        find_adapter("GPT2LMHeadModel")


def test_a_layer_that_is_missing_or_not_linear_is_named(adapter):
    model = tiny_llama()
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(NotImplementedError, match=r"LlamaDecoderLayer has no 'mlp\.up_proj'"):
        list(adapter.named_linears(model))
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match=r"is a Identity, expected an nn\.Linear"):
        list(adapter.named_linears(model))


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_one_by_one_are_the_model(name):
    """Where one block's window is shorter than the sequence and the other's is not, too."""
    model = tiny_model(name)
    adapter = find_adapter(type(model).__name__)
    unfuse(model, adapter)
    expected = []
    model.model.norm.register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    model(IDS)
    hidden, inputs = embed(model, adapter, IDS)
    for block_name, block in adapter.named_blocks(model):
        hidden = run_block(block, hidden, inputs[block_name])
    assert torch.equal(hidden, expected[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2", "cohere2", "qwen2"])
def test_blocks_are_called_with_their_own_masks(name):
    model = tiny_model(name)
    adapter = find_adapter(type(model).__name__)
    hidden, inputs = embed(model, adapter, IDS)
    (first, block), (second, _) = adapter.named_blocks(model)
    own = run_block(block, hidden, inputs[first])
    assert not torch.equal(own, run_block(block, hidden, inputs[second]))


@torch.no_grad()
def test_a_forward_after_the_pass_is_not_caught(model, adapter):
    expected = model(IDS).logits
    embed(model, adapter, IDS)
    assert torch.equal(model(IDS).logits, expected)


@torch.no_grad()
def test_a_forward_of_a_block_s_own_is_kept(model, adapter):
    """accelerate puts one there."""
    block = model.model.layers[1]
    own = block.forward = lambda hidden, **_: hidden + 1
    embed(model, adapter, IDS)
    assert block.forward is own
    assert "forward" not in vars(model.model.layers[0])


def test_an_error_inside_the_model_leaves_the_blocks_as_they_were(model, adapter):
    model.model.rotary_emb = None
    with pytest.raises(TypeError):
        embed(model, adapter, IDS)
    assert not any("forward" in vars(block) for block in model.model.layers)


@torch.no_grad()
def test_each_input_is_seen_once_also_without_the_last_linear(model, adapter):
    hidden, inputs = embed(model, adapter, IDS)
    block_name, block = adapter.named_blocks(model)[0]
    linears = adapter.linears_of(block)
    whole, short = [], []
    with watching(adapter, block, lambda name, x, _: whole.append((name, x))):
        run_block(block, hidden, inputs[block_name])
    with watching(adapter, block, lambda name, x, _: short.append((name, x))):
        run_to_input(adapter, block, list(linears)[-1], hidden, inputs[block_name])
    assert [name for name, _ in whole] == list(linears)
    for (name, x), (short_name, short_x) in zip(whole, short, strict=True):
        assert name == short_name
        assert torch.equal(x, short_x)
        assert x.shape[-1] == adapter.linear(block, linears[name][0]).in_features


def test_a_folder_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert architecture(str(tmp_path)) == "LlamaForCausalLM"
    assert torch.equal(load_model(str(tmp_path))(IDS).logits, model(IDS).logits)
    assert load_model(str(tmp_path), "bfloat16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'int8', expected one of: auto, float32"):
        load_model(str(tmp_path), "int8")


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./model.gguf", "~/model"])
def test_a_path_with_nothing_there(source):
    with pytest.raises(FileNotFoundError, match=f"There is no model at '{source}'"):
        check_source(source)


def test_a_file_that_is_not_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"is not a GGUF file \(it begins with b'PK"):
        check_source(str(tmp_path / "model.gguf"))


def test_a_gguf_file_without_the_package_that_reads_it(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    check_source(str(tmp_path / "model.gguf"))
    monkeypatch.setattr("mlcalib.models.loading.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"model.gguf' is a GGUF file.*'mlcalib\[gguf\]'"):
        check_source(str(tmp_path / "model.gguf"))


def test_a_name_that_is_neither_a_folder_nor_on_the_hub(monkeypatch):
    from transformers import AutoTokenizer

    def unreachable(*_, **__):
        raise OSError("We couldn't connect")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(OSError, match=r"no folder or file 'MODEL' here.*hub: We couldn't connect"):
        load_tokenizer("MODEL")


def test_a_model_that_predicts_no_token(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="type 'vit', which is no causal language model"):
        architecture(str(tmp_path))


def test_formats_that_cannot_hold_a_model_are_refused(tmp_path, tokenizer):
    import mlcalib

    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Conv1D.*Give format='dense'"):
        mlcalib.quantize(tmp_path, method="rtn")


def test_a_name_that_llama_cpp_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"knows no architecture 'lama'; it knows: .*llama"):
        GgufArchitecture("lama").tensor_names(2)
