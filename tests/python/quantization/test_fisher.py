"""What the loss feels of each linear: against autograd on the whole model, and put to use."""

import filecmp
from zlib import crc32

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_fisher import felt_of
from small_models import tiny_llama, tiny_model
from tiny_architectures import architectures, tiny_models
from torch import nn

import mlcalib
from mlcalib.models import adapter_for
from mlcalib.quantization.backward import own_loss
from mlcalib.quantization.fisher import BlockFisher, Fisher, sequences_of
from mlcalib.quantization.open_source import live_source, open_source
from mlcalib.quantization.prefixes import Prefix, mixture_of
from reference import oracle

FAMILIES = ["llama", "llama-bias", "gemma2", "cohere", "qwen2_moe", "mixtral"]


def gathered(source, calibration, tokens=10_000, mixture=None, **options):
    """Block → what was gathered of it, on as many tokens as there are by default."""
    asked = {"one": (mixture or mixture_of(calibration), tokens)}
    felt = felt_of(source, calibration, asked, **options)
    return {name: each.mixtures["one"] for name, each in felt.items()}


def start_here(_, __, output):
    return output.detach().requires_grad_()


def wanted_of(model, calibration, labels="model"):
    """The same by one backward pass of the whole model for each sequence."""
    source = live_source(model)
    model, adapter = source.model, source.adapter
    names = {
        f"{block}.{member}": (block, key, member)
        for block, module in adapter.named_blocks(model)
        for key, members in adapter.linears_of(module).items()
        for member in members
    }
    inputs, outputs = {}, {}
    for language, tokens in calibration.tokens.items():
        share = tokens / (tokens // calibration.seq_len * calibration.seq_len)
        for index, (ids, counted) in enumerate(calibration.sequences(language)):
            if counted < calibration.seq_len:
                continue
            seen, handles = {}, []
            for name in names:

                def keep(_, args, output, name=name, seen=seen):
                    if output.requires_grad:
                        output.retain_grad()
                        seen[name] = (args[0].detach().flatten(0, -2), output)

                handles.append(model.get_submodule(name).register_forward_hook(keep))
            handles.append(model.get_input_embeddings().register_forward_hook(start_here))
            logits = model(input_ids=ids, use_cache=False).logits[0]
            for handle in handles:
                handle.remove()
            loss = own_loss(logits, crc32(f"{(language, index)}".encode()))
            if labels == "text":
                loss = -logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).sum()
            loss.backward()
            felt = {}
            for name, (x, output) in seen.items():
                block, key, member = names[name]
                if output.grad is None:  # nothing that the loss reads comes from it
                    continue
                g = output.grad.flatten(0, -2).double()
                felt.setdefault((block, key), (x.double(), []))[1].append(g.square().sum(1))
                groups = model.get_submodule(name).weight.shape[0] // g.shape[1]  # read in turn
                o = torch.block_diag(
                    *(output_gram(x[i::groups].double(), g[i::groups]) for i in range(groups))
                )
                outputs[block, member] = outputs.get((block, member), 0) + share * o
            for key, (x, weights) in felt.items():
                weighted = (x * sum(weights).unsqueeze(1)).T @ x
                inputs[key] = inputs.get(key, 0) + share * weighted
    return inputs, outputs


def output_gram(x, g):
    return (g * x.square().sum(1, keepdim=True)).T @ g


def close(found, wanted, tolerance=1e-3):
    return (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_is_that_of_a_whole_backward_pass(family, calibration):
    model = tiny_model(family, vocabulary=384)
    found = gathered(live_source(model), calibration)
    inputs, outputs = wanted_of(model, calibration)
    assert {(block, key) for block in found for key in found[block].inputs} == inputs.keys()
    for (block, key), gram in inputs.items():
        assert close(found[block].inputs[key].view("saliency_gram")["gram"], gram)
    for (block, member), gram in outputs.items():
        assert close(found[block].outputs[member].view("output_gram")["gram"], gram)


@pytest.mark.parametrize(
    "name",
    [
        "Gemma4ForCausalLM",  # keys and values of earlier blocks
        "GlmMoeDsaForCausalLM",  # chosen tokens, without a gradient
        "DeepseekV4ForCausalLM",  # blocks read the token ids
        "BambaForCausalLM",  # recurrent blocks
        "GptOssForCausalLM",
    ],
)
def test_what_blocks_hand_over_has_gradients(name):
    model = next(
        made for _, made in tiny_models(name, architectures()[name]) if isinstance(made, nn.Module)
    )
    calibration = mlcalib.calibration(None, corpus={"en": [list(range(5, 69))]}, seq_len=16)
    inputs, outputs = wanted_of(model, calibration)
    found = gathered(live_source(model), calibration)
    assert {(block, key) for block in found for key in found[block].inputs} == inputs.keys()
    for (block, member), gram in outputs.items():
        assert close(found[block].outputs[member].view("output_gram")["gram"], gram)


def test_rows_that_read_tokens_in_turn_are_solved(tokenizer):
    name = "DeepseekV4ForCausalLM"
    model = next(
        made for _, made in tiny_models(name, architectures()[name]) if isinstance(made, nn.Module)
    )
    calibration = mlcalib.calibration(None, corpus={"en": [list(range(5, 69))]}, seq_len=16)
    given = {"group_size": 16, "progress": False, "format": "dense"}
    with_it, without = (
        mlcalib.quantize(model, calibration, tokenizer=tokenizer, fisher_tokens=tokens, **given)
        for tokens in (64, 0)
    )
    grouped = "model.layers.0.self_attn.o_a_proj"
    assert not torch.equal(with_it.linears[grouped].codes, without.linears[grouped].codes)
    assert with_it.divergence[grouped]["en"] > 0


def test_labels_may_be_those_of_the_text(calibration):
    model = tiny_llama(vocabulary=384)
    found = gathered(live_source(model), calibration, labels="text")
    _, outputs = wanted_of(model, calibration, "text")
    for (block, member), gram in outputs.items():
        assert close(found[block].outputs[member].view("output_gram")["gram"], gram)
    _, others = wanted_of(model, calibration)
    assert not any(close(others[key], outputs[key]) for key in outputs)


def test_labels_are_an_option(calibration, tokenizer):
    model = tiny_llama(vocabulary=384)
    made = {}
    for labels in ("model", "text"):
        made[labels] = mlcalib.quantize(
            model, calibration, tokenizer=tokenizer, progress=False, format="dense", bits=3,
            group_size=32, fisher_tokens=256, fisher_labels=labels,
        )  # fmt: skip
    name = "model.layers.0.mlp.down_proj"
    assert not torch.equal(*(each.linears[name].codes for each in made.values()))
    assert made["model"].divergence
    assert not made["text"].divergence  # which is not what these gradients tell
    with pytest.raises(ValueError, match=r"objective 'worst'.*leave fisher_labels out"):
        mlcalib.GPTQ(objective="worst", fisher_tokens=256, fisher_labels="text")


@pytest.mark.parametrize("tied", [False, True])
def test_streamed_is_what_memory_gives(tied, saved, calibration):
    folder = saved(tiny_llama(vocabulary=384, tied=tied))
    held = gathered(open_source(folder, "auto").loaded(), calibration)
    streamed = gathered(open_source(folder, "auto"), calibration)
    for block, fisher in held.items():
        for name, each in fisher.outputs.items():
            other = streamed[block].outputs[name]
            assert torch.equal(each.view("output_gram")["gram"], other.view("output_gram")["gram"])


def test_adds_up_over_languages(calibration):
    source = live_source(tiny_llama(vocabulary=384))
    mixture = mixture_of(calibration)
    weights = dict(zip(mixture, (2.0, 0.5), strict=True))
    both = gathered(source, calibration, mixture=weights)
    alone = [gathered(source, calibration, mixture={prefix: 1.0}) for prefix in mixture]
    for block, fisher in both.items():
        for name, each in fisher.outputs.items():
            parts = [one[block].outputs[name].view("output_gram")["gram"] for one in alone]
            whole = 2 * parts[0] + parts[1] / 2
            assert close(each.view("output_gram")["gram"], whole.double(), 1e-5)
        for each in fisher.inputs.values():
            tokens = [weight * prefix.tokens for prefix, weight in weights.items()]
            assert each.tokens == pytest.approx(sum(tokens))


def test_fewer_tokens_are_the_first_sequences(calibration):
    source = live_source(tiny_llama(vocabulary=384))
    (language, *_) = calibration.ids
    prefix = Prefix(language, 32)
    (whole,) = [each for each in mixture_of(calibration) if each.language == language]
    one = gathered(source, calibration, mixture={prefix: 1.0})
    few = gathered(source, calibration, tokens=32, mixture={whole: 1.0})
    for block, fisher in few.items():
        for name, each in fisher.inputs.items():
            first = one[block].inputs[name].view("saliency_gram")["gram"]
            found = each.view("saliency_gram")["gram"]
            assert close(found, first.double() * whole.tokens / 32, 1e-5)


def test_texts_by_themselves_make_up_the_mixtures(calibration):
    source = live_source(tiny_llama(vocabulary=384))
    mixture = dict(zip(mixture_of(calibration), (2.0, 0.5), strict=True))
    (first, _), short = mixture, Prefix(next(iter(calibration.ids)), 32)
    asked = {"both": (mixture, 10_000), "one": ({first: 1.0}, 10_000), "few": ({short: 1.0}, 32)}
    found = felt_of(source, calibration, asked)
    less = felt_of(source, calibration, asked, by_text=False)
    for block, felt in found.items():
        assert felt.texts["both"].keys() == felt.languages.keys() == mixture.keys()
        assert felt.texts["both"][first] is felt.texts["one"][first]
        assert not less[block].texts
        assert not less[block].languages
        for key, (weights, _) in asked.items():
            mixed = BlockFisher.mixed(felt.texts[key], weights)
            assert mixed.outputs.keys() == felt.mixtures[key].outputs.keys()
            for name, each in mixed.outputs.items():
                gram = each.view("output_gram")["gram"]
                for other in (felt, less[block]):
                    wanted = other.mixtures[key].outputs[name].view("output_gram")["gram"]
                    assert close(gram, wanted.double(), 1e-6)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(64, 10_000), min_size=1),
    st.integers(1, 20_000),
)
def test_sequences_share_the_tokens_as_the_mixture_does(tokens, asked):
    mixture = {Prefix(language, count): 1.0 for language, count in tokens.items()}
    found = sequences_of(mixture, asked, 64)
    total = sum(tokens.values())
    for prefix, count in found.items():
        assert 1 <= count <= prefix.tokens // 64
        assert count <= 1 or count * 64 <= asked * prefix.tokens / total + 64


def test_gptq_makes_what_the_loss_feels_small(calibration, tokenizer):
    model = tiny_llama(vocabulary=384, hidden=96, intermediate=192)
    inputs, outputs = wanted_of(model, calibration)
    options = {"bits": 3, "group_size": 32, "propagate": "float", "format": "dense"}
    adapter = adapter_for(model)

    def felt(tokens):
        quantized = mlcalib.quantize(
            model,
            calibration,
            tokenizer=tokenizer,
            progress=False,
            fisher_tokens=tokens,
            output_damp=0.1,
            **options,
        ).model
        total = 0.0
        for block, module in adapter.named_blocks(model):
            for key, members in adapter.linears_of(module).items():
                for member in members:
                    name = f"{block}.{member}.weight"
                    change = model.get_parameter(name) - quantized.get_parameter(name)
                    total += oracle.two_sided_loss(
                        outputs[block, member], change.detach(), inputs[block, key]
                    )
        return total

    assert felt(10_000) < 0.9 * felt(0)


@pytest.mark.parametrize("propagate", ["float", "quantized"])
@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_from_files_to_the_same_files(family, propagate, saved, calibration, tmp_path):
    source = saved(tiny_model(family, vocabulary=384))
    options = {"group_size": 32, "propagate": propagate, "format": "dense", "progress": False}
    options |= {"fisher_tokens": 100, "objective": "worst"}
    mlcalib.quantize(source, calibration, **options).save(tmp_path / "a", "dense")
    mlcalib.quantize_checkpoint(source, tmp_path / "b", calibration, **options)
    plain = options | {"objective": "mean"}
    mlcalib.quantize_checkpoint(source, tmp_path / "c", calibration, **plain)
    weights = "model.safetensors"
    assert filecmp.cmp(tmp_path / "a" / weights, tmp_path / "b" / weights, shallow=False)
    assert not filecmp.cmp(tmp_path / "a" / weights, tmp_path / "c" / weights, shallow=False)


def test_an_interrupted_run_goes_on(saved, calibration, tmp_path, monkeypatch):
    source = saved(tiny_llama(vocabulary=384))
    options = {"group_size": 32, "format": "dense", "progress": False, "fisher_tokens": 100}
    options["objective"] = "worst"  # which knows what finished blocks cost
    mlcalib.quantize_checkpoint(source, tmp_path / "whole", calibration, **options)
    gather = Fisher.gather

    def once(self, name, block):
        if name.endswith("1"):
            raise KeyboardInterrupt
        return gather(self, name, block)

    with monkeypatch.context() as patched:
        patched.setattr(Fisher, "gather", once)
        with pytest.raises(KeyboardInterrupt):
            mlcalib.quantize_checkpoint(source, tmp_path / "out", calibration, **options)
    mlcalib.quantize_checkpoint(source, tmp_path / "out", calibration, **options)
    weights = "model.safetensors"
    assert filecmp.cmp(tmp_path / "whole" / weights, tmp_path / "out" / weights, shallow=False)


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_what_no_gradient_reaches_is_said(family, calibration, tokenizer, caplog):
    options = {"group_size": 32, "format": "dense", "progress": False, "fisher_tokens": 32}
    model = tiny_model(family, vocabulary=384)
    mlcalib.quantize(model, calibration, tokenizer=tokenizer, **options)
    said = "no gradient of the loss came through" in caplog.text
    assert said == (family == "qwen2_moe")  # 12 experts, and few tokens


def test_a_loss_that_is_not_finite_is_named(calibration, tokenizer):
    model = tiny_llama(vocabulary=384)
    model.lm_head.weight.data[7] = 1e38
    with pytest.raises(ValueError, match=r"loss on text in 'en' has gradients with NaN or Inf"):
        mlcalib.quantize(
            model, calibration, tokenizer=tokenizer, group_size=32, fisher_tokens=64, progress=False
        )
