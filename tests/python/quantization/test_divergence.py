"""What a change costs each language by the loss's gradients, and weights that follow it."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_fisher import felt_of
from small_models import tiny_llama
from small_pass import quantize_blocks
from tiny_architectures import architectures, tiny_models
from torch import nn

import mlcalib
from mlcalib.quantization.open_source import live_source
from mlcalib.quantization.prefixes import Prefix, mixture_of
from mlcalib.quantization.worst_off import weighed
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import ChannelScales, QuantizerOptions, felt_grams
from mlcalib.statistics import StatisticSet


def divergence_of(model, other, calibration, language):
    """KL(model ‖ other) per token."""
    total, count = 0.0, 0
    for ids, _ in calibration.sequences(language):
        p, q = (each(input_ids=ids).logits[0].log_softmax(-1) for each in (model, other))
        total += float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
        count += ids.numel()
    return total / count


@torch.no_grad()
def test_divergence_is_that_of_a_small_change(calibration):
    """Of one linear at a time: half of what the exact Fisher information of it says, to a factor.

    The Kronecker form and one label for each token are approximations.
    """
    model = tiny_llama(vocabulary=384).double()
    source = live_source(model)
    felt = felt_of(source, calibration, {"all": (mixture_of(calibration), 10_000)})
    ratios = []
    generator = torch.Generator().manual_seed(3)
    for block, module in source.adapter.named_blocks(model):
        fisher = replace(felt[block].mixtures["all"], languages=felt[block].languages)
        for key, members in source.adapter.linears_of(module).items():
            for member in members:
                linear = source.adapter.linear(module, member)
                own = linear.weight.detach().clone()
                change = torch.randn(own.shape, generator=generator) * own.std() * 0.1
                found = fisher.divergences(key, member, change)
                linear.weight.copy_(own - change)
                changed = deepcopy(model)
                linear.weight.copy_(own)
                for language, predicted in found.items():
                    measured = divergence_of(model, changed, calibration, language)
                    ratios.append(predicted / measured)
    logs = torch.tensor(ratios).log()
    assert logs.mean().exp() == pytest.approx(1, rel=0.25)
    assert logs.std() < 0.7


def test_divergence_grows_with_the_square_and_follows_the_tokens(calibration):
    source = live_source(tiny_llama(vocabulary=384))
    felt = felt_of(source, calibration, {"all": (mixture_of(calibration), 10_000)})
    fisher = felt["model.layers.0"].mixtures["all"]
    member = "self_attn.q_proj"
    linears = source.adapter.linears_of(source.model.model.layers[0])
    (name,) = (key for key, members in linears.items() if member in members)
    change = torch.randn(source.adapter.linear(source.model.model.layers[0], member).weight.shape)
    once = fisher.divergence(name, member, change, 100)
    assert once > 0
    assert fisher.divergence(name, member, 3 * change, 100) == pytest.approx(9 * once)
    assert fisher.divergence(name, member, change, 50) == pytest.approx(2 * once)
    assert fisher.divergence(name, "elsewhere", change, 50) == 0


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1e3), min_size=1),
    st.integers(1, 1000),
)
def test_what_loses_more_weighs_more(lost, tokens):
    mixture = {Prefix(language, tokens + len(lost)): 0.5 for language in lost}
    found = weighed(mixture, lost)
    assert found.keys() == mixture.keys()
    total = sum(weight * prefix.tokens for prefix, weight in found.items())
    assert total == pytest.approx(sum(w * prefix.tokens for prefix, w in mixture.items()))
    for a, b in pairwise(sorted(found, key=lambda prefix: lost[prefix.language])):
        assert found[a] <= found[b]
    assert weighed(mixture, dict.fromkeys(lost, 0.0)) == mixture
    assert weighed(mixture, dict.fromkeys(lost, 7.0)) == pytest.approx(mixture)


def test_objective_worst_needs_gradients():
    with pytest.raises(ValueError, match=r"objective 'worst' .* needs fisher_tokens above 0"):
        mlcalib.GPTQ(objective="worst")


@pytest.mark.parametrize("propagate", ["float", "quantized"])
def test_objective_worst_helps_who_loses_most(propagate, calibration, tokenizer):
    model = tiny_llama(vocabulary=384, hidden=96, intermediate=192)
    options = {"bits": 2, "group_size": 32, "propagate": propagate, "format": "dense"}
    options |= {"fisher_tokens": 10_000, "progress": False, "output_damp": 0.1}

    def lost(objective):
        made = mlcalib.quantize(
            model, calibration, tokenizer=tokenizer, objective=objective, **options
        )
        assert made.divergence.keys() == made.linears.keys()
        assert made.metadata("dense")["layers"].keys() == made.divergence.keys()
        by_language = made.divergence.values()
        return {code: sum(each[code] for each in by_language) for code in calibration.ids}

    mean, worst = lost("mean"), lost("worst")
    assert max(worst.values()) / min(worst.values()) < max(mean.values()) / min(mean.values())
    assert max(worst.values()) < max(mean.values())


class Scaling(Quantizer):
    """Rounds, after scales between 1/8 and 8 that nothing speaks for."""

    scales = True
    fisher_tokens = 10_000

    def prepare(self, inputs, source_of, loss_of):
        channels = inputs[0].weights[0].shape[1]
        generator = torch.Generator().manual_seed(channels)
        values = torch.randint(-3, 4, (channels,), generator=generator).exp2()
        if source_of is not None:
            values = values[: int(source_of.max()) + 1][source_of]
        return ChannelScales(values, {})


@torch.no_grad()
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM"])
def test_divergence_of_scaled_linears_is_that_of_the_model(name):
    """Scales change what is rounded, and what linears read and return, or some of their rows."""
    model = next(
        made for _, made in tiny_models(name, architectures()[name]) if isinstance(made, nn.Module)
    )
    calibration = mlcalib.calibration(None, corpus={"en": [list(range(5, 69))]}, seq_len=16)
    options = QuantizerOptions(bits=7, group_size=16)
    sink = quantize_blocks(model, Scaling(options, torch.float32), calibration, propagate="float")
    for language in calibration.ids:
        predicted = sum(
            layer["divergence"][language]
            for record in sink.records.values()
            for layer in record["layers"].values()
        )
        measured = divergence_of(model, sink.model, calibration, language)
        assert predicted == pytest.approx(measured, rel=0.4)


def statistic(kind, x):
    found = StatisticSet((kind,), x.shape[1])
    found.update(x)
    return found


def test_felt_grams_are_as_large_as_each_other():
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(50, 8, generator=generator) * size for size in (1.0, 3.0)]
    grams = [statistic("gram", each).gram() for each in x]
    felt = [statistic("saliency_gram", each * 1e-4) for each in x]
    for factor in (1.0, 1e3):
        found = felt_grams([gram * factor for gram in grams], felt)
        mean = sum(gram.diagonal().mean() for gram in grams) / 2
        for each, gram in zip(found, grams, strict=True):
            torch.testing.assert_close(each, 2 * gram / mean, rtol=1e-4, atol=1e-5)
    unknown = felt_grams(grams, [None, None])
    torch.testing.assert_close(unknown, felt_grams(grams, felt), rtol=1e-4, atol=1e-5)


def test_awq_takes_gradients(calibration, tokenizer):
    model = tiny_llama(vocabulary=384, hidden=96, intermediate=192)

    def made(tokens):
        return mlcalib.quantize(
            model,
            calibration,
            method=mlcalib.AWQ(bits=3, group_size=32, fisher_tokens=tokens),
            tokenizer=tokenizer,
            format="dense",
            progress=False,
        )

    with_gradients, without = made(10_000), made(0)
    assert not without.divergence
    assert with_gradients.divergence.keys() == with_gradients.linears.keys()
    differ = [
        not torch.equal(each.codes, without.linears[name].codes)
        for name, each in with_gradients.linears.items()
    ]
    assert all(differ)
