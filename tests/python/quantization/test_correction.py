"""Targets that make up for the error of earlier layers, and the pass that brings what they need."""

import copy

import pytest
import torch
from core_data import activations, gram_of, random_weight
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import tiny_llama, tiny_model

import mlcalib
from mlcalib import _core as core
from mlcalib.models import find_adapter
from mlcalib.models.running import embed, run_block, watching
from reference import oracle


def pair(tokens, channels, seed=0, noise=0.2):
    """Activations of a float model and of one that is off by some noise."""
    reference = activations(tokens, channels, seed)
    return reference + noise * activations(tokens, channels, seed + 1), reference


def deviation_of(x, reference):
    statistic = core.make_statistic("deviation", x.shape[1])
    statistic.update(x, reference)
    return statistic.state()["deviation"]


@given(
    st.integers(1, 90),
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(1e-3, 1),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_matches_the_oracle(channels, tokens, strength, ridge, seed):
    x, reference = pair(tokens, channels, seed)
    weights = [random_weight(rows, channels, seed + rows) for rows in (1, 5)]
    options = core.CorrectionOptions(strength, ridge)
    found = core.corrected(weights, gram_of(x), deviation_of(x, reference), options)
    for weight, target in zip(weights, found, strict=True):
        wanted = oracle.corrected(weight, x, reference, strength, ridge)
        assert (target - wanted).abs().max() <= 2e-3 * wanted.abs().max()


def test_the_full_correction_is_the_least_squares_solution():
    x, reference = pair(900, 60)
    weight = random_weight(8, 60)
    full = core.CorrectionOptions(1.0, 1e-6)
    (target,) = core.corrected([weight], gram_of(x), deviation_of(x, reference), full)
    best = torch.linalg.lstsq(x.double(), reference.double() @ weight.double().T).solution.T

    def loss(candidate):
        difference = reference.double() @ weight.double().T - x.double() @ candidate.double().T
        return float(difference.square().sum())

    assert loss(target) <= loss(best) * (1 + 1e-4)
    assert loss(target) < 0.95 * loss(weight)


def test_nothing_is_corrected_where_models_agree():
    x = activations(200, 60)
    weight = random_weight(8, 60)
    (target,) = core.corrected([weight], gram_of(x), deviation_of(x, x))
    assert torch.equal(target, weight)


def corrected_weights(model, calibration, strength, bits, before):
    """The definition, written plainly: linear (name in the model) → its dequantized weight.

    Each is solved behind those ``before`` it: a code that sums in another order have moved would
    else be seen by all that come after it.
    """
    adapter = find_adapter(type(model).__name__)
    model = copy.deepcopy(model)
    options = core.GptqOptions(core.GridSpec(bits, 32, range="gram"))
    states = []
    for language in calibration.ids:
        for ids, counted in calibration.sequences(language):
            state, inputs = embed(model, adapter, ids)
            states.append((state, state, counted))
    found = {}
    for name, own in adapter.named_blocks(model):
        block = copy.deepcopy(own)  # as the float model has it
        for key, members in adapter.linears_of(block).items():
            read, missing = ([], []), []
            for floating, quantized, counted in states:
                outputs = []
                for side, (module, state) in enumerate(((block, floating), (own, quantized))):

                    def keep(other, x, _, side=side, counted=counted, key=key, read=read):
                        if other == key:
                            read[side].append(x[:counted])

                    with watching(adapter, module, keep):
                        outputs.append(run_block(module, state, inputs[name]))
                missing.append((outputs[0] - outputs[1])[0, :counted])
            reference, x = map(torch.cat, read)
            weights = [adapter.linear(block, member).weight.detach() for member in members]
            if members == ("mlp.down_proj",):  # it makes up for all that the block returns
                by = torch.cat(missing)
                targets = [oracle.corrected_by(weights[0], x, by, strength, 0.05).float()]
            else:
                targets = [
                    oracle.corrected(w, x, reference, strength, 0.05).float() for w in weights
                ]
            for member, solved in zip(
                members, core.gptq(targets, gram_of(x), options), strict=True
            ):
                found[f"{name}.{member}"] = solved.dequantize()
                adapter.linear(own, member).weight.data = before[f"{name}.{member}"].dequantize()
        states = [
            (run_block(block, floating, inputs[name]), run_block(own, quantized, inputs[name]), n)
            for floating, quantized, n in states
        ]
    return found


@pytest.mark.parametrize("strength", [0.25, 1.0])
@torch.no_grad()
def test_a_model_is_what_the_definition_says(strength, calibration, tokenizer):
    model = tiny_llama(vocabulary=384, layers=3)
    quantized = mlcalib.quantize(
        model, calibration, tokenizer=tokenizer, group_size=32, correction=strength, progress=False
    )
    wanted = corrected_weights(model, calibration, strength, 4, quantized.linears)
    plain = mlcalib.quantize(model, calibration, tokenizer=tokenizer, group_size=32, progress=False)
    for name, weight in wanted.items():
        linear = quantized.linears[name]
        step = linear.grid.scale.mean()
        same = (linear.dequantize() - weight).abs() < step / 2
        assert same.float().mean() > 0.99, name
        if name.startswith("model.layers.2"):
            other = plain.linears[name].dequantize()
            assert ((other - weight).abs() < step / 2).float().mean() < 0.99


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scales": "awq"},  # what the float model's linears read has none
        {"fisher_tokens": 100, "objective": "worst"},  # the first block is solved twice
        {"scales": "awq", "fisher_tokens": 100, "objective": "worst"},
    ],
)
@torch.no_grad()
def test_little_is_corrected_where_little_is_lost(options, calibration, tokenizer):
    model = tiny_llama(vocabulary=384, layers=3)
    ids = torch.arange(64)[None]
    options = {"bits": 8, "group_size": 16, **options, "tokenizer": tokenizer}
    quantized = mlcalib.quantize(model, calibration, correction=1.0, progress=False, **options)
    wanted = model(ids).logits
    assert (quantized.model(ids).logits - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"propagate": "float", "correction": 0.5}, "pass propagate='quantized'"),
        ({"correction": 1.5}, "correction is 1.5, expected at most 1"),
        ({"correction": -0.1}, "correction is -0.1, expected at least 0"),
        ({"method": "awq", "correction": 0.5}, "Unknown option 'correction'"),
    ],
)
def test_bad_options_are_refused_before_any_forward(options, message, calibration, tokenizer):
    model = tiny_llama(vocabulary=384)
    model.forward = None
    with pytest.raises(ValueError, match=message):
        mlcalib.quantize(model, calibration, tokenizer=tokenizer, group_size=32, **options)


def test_experts_are_refused_before_any_forward(calibration, tokenizer):
    model = tiny_model("mixtral", vocabulary=384)
    model.forward = None
    with pytest.raises(NotImplementedError, match="experts of the two see different ones"):
        mlcalib.quantize(
            model, calibration, tokenizer=tokenizer, group_size=32, format="dense", correction=0.5
        )


def test_a_study_refuses_it_with_float_propagation():
    from mlcalib.studies.grid import variants_of
    from mlcalib.studies.spec import StudySpec

    def spec(propagate):
        return StudySpec.model_validate(
            {
                "name": "corrected",
                "models": ["smollm2"],
                "corpus": "sample",
                "settings": [{"name": "en", "languages": "en", "tokens": 512}],
                "quantizers": [{"method": "gptq", "correction": [0.25], "propagate": propagate}],
            }
        )

    assert list(variants_of(spec("quantized")))
    with pytest.raises(ValueError, match="pass propagate='quantized'"):
        variants_of(spec("float"))
