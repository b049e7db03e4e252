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
from mlcalib.quantizers._correction import held_out_strength
from mlcalib.statistics import StatisticSet, mix
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


def statistics_of(x, reference):
    """What is kept of all tokens, and of the first half of them by themselves."""
    found = StatisticSet(("gram", "deviation"), x.shape[1])
    found.half = found.empty_like()
    found.update(x, reference)
    middle = len(x) // 2
    if middle:
        found.half.update(x[:middle], reference[:middle])
    return found


@given(
    st.integers(1, 60), st.integers(2, 150), st.floats(0.05, 2), st.booleans(), st.integers(0, 99)
)
@settings(deadline=None)
def test_the_held_out_strength_is_the_oracles(channels, tokens, noise, systematic, seed):
    x, reference = pair(tokens, channels, seed, noise)
    if systematic:
        reference = x + noise * (x @ random_weight(channels, channels, seed) / channels**0.5)
    weights = [random_weight(rows, channels, seed + rows) for rows in (1, 5)]
    missing = [(reference - x).double() @ weight.double().T for weight in weights]
    middle = tokens // 2
    halves = [
        (x[part], [each[part] for each in missing])
        for part in (slice(None, middle), slice(middle, None))
    ]
    wanted = oracle.held_out_strength(weights, halves, 0.05)
    found = held_out_strength(weights, statistics_of(x, reference))
    assert found == pytest.approx(wanted, abs=0.02)


def test_what_is_the_same_everywhere_is_corrected_and_noise_is_not():
    x = activations(2_000, 30)
    weight = [random_weight(8, 30)]
    turned = x + 0.1 * x @ random_weight(30, 30, 1) / 30**0.5
    assert held_out_strength(weight, statistics_of(x, turned)) > 0.9
    noisy = x + 0.1 * activations(2_000, 30, 2)
    assert held_out_strength(weight, statistics_of(x, noisy)) < 0.3
    assert held_out_strength(weight, statistics_of(x, x)) == 0


def test_a_single_token_has_no_other_half():
    x, reference = pair(1, 10)
    assert held_out_strength([random_weight(3, 10)], statistics_of(x, reference)) == 0


def test_statistics_without_halves_are_refused():
    x, reference = pair(50, 10)
    statistics = statistics_of(x, reference)
    statistics.half = None
    with pytest.raises(ValueError, match="no half of the text to try it on; give a number"):
        held_out_strength([random_weight(3, 10)], statistics)


@given(st.floats(0.1, 10), st.integers(0, 99))
@settings(deadline=None)
def test_halves_are_mixed_and_scaled_with_the_whole(weight, seed):
    sets = [statistics_of(*pair(40, 12, seed + place)) for place in range(2)]
    factors = activations(1, 12, seed + 9)[0].abs() + 0.1
    mixed = mix(dict(enumerate(sets)), {0: 1.0, 1: weight})
    mixed.rescale(factors)
    for kind in ("gram", "deviation"):
        first, second = (each.half.state(kind)[kind] for each in sets)
        wanted = (first + weight * second) * factors[:, None] * factors
        assert (mixed.half.state(kind)[kind] - wanted).norm() <= 1e-5 * wanted.norm()
    assert mixed.copy().half.tokens == pytest.approx(20 * (1 + weight))
    mixed.drop(["gram"])
    assert mixed.half.kinds == ("deviation",)


def corrected_weights(model, calibration, strength, bits, before):
    """The definition, written plainly: linear (name in the model) → weight, strength.

    Each is solved behind those ``before`` it: a code that sums in another order have moved would
    else be seen by all that come after it.
    """
    adapter = find_adapter(type(model).__name__)
    model = copy.deepcopy(model)
    options = core.GptqOptions(core.GridSpec(bits, 32, range="gram"))
    states, first = [], []
    for language in calibration.ids:
        left = calibration.tokens[language] // 2  # of the first half
        for ids, counted in calibration.sequences(language):
            state, inputs = embed(model, adapter, ids)
            states.append((state, state, counted))
            first += [place < left for place in range(counted)]
            left -= counted
    first = torch.tensor(first)
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
            by = [(reference - x).double() @ weight.double().T for weight in weights]
            if members == ("mlp.down_proj",):  # it makes up for all that the block returns
                by = [torch.cat(missing)]
            taken = strength
            if strength == "auto":
                halves = [(x[part], [each[part] for each in by]) for part in (first, ~first)]
                taken = oracle.held_out_strength(weights, halves, 0.05)
            targets = [
                oracle.corrected_by(weight, x, each, taken, 0.05).float()
                for weight, each in zip(weights, by, strict=True)
            ]
            for member, solved in zip(
                members, core.gptq(targets, gram_of(x), options), strict=True
            ):
                found[f"{name}.{member}"] = solved.dequantize(), taken
                adapter.linear(own, member).weight.data = before[f"{name}.{member}"].dequantize()
        states = [
            (run_block(block, floating, inputs[name]), run_block(own, quantized, inputs[name]), n)
            for floating, quantized, n in states
        ]
    return found


@pytest.mark.parametrize("strength", [0.25, 1.0, "auto"])
@torch.no_grad()
def test_a_model_is_what_the_definition_says(strength, calibration, tokenizer):
    model = tiny_llama(vocabulary=384, layers=3)
    quantized = mlcalib.quantize(
        model, calibration, tokenizer=tokenizer, group_size=32, correction=strength, progress=False
    )
    wanted = corrected_weights(model, calibration, strength, 4, quantized.linears)
    plain = mlcalib.quantize(model, calibration, tokenizer=tokenizer, group_size=32, progress=False)
    recorded = quantized.metadata("compressed-tensors")["layers"]
    for name, (weight, taken) in wanted.items():
        linear = quantized.linears[name]
        assert linear.correction == pytest.approx(taken, abs=0.02)
        assert recorded[name].get("correction", 0) == linear.correction
        step = linear.grid.scale.mean()
        same = (linear.dequantize() - weight).abs() < step / 2
        assert same.float().mean() > 0.99, name
        if name.startswith("model.layers.2"):
            assert plain.linears[name].correction == 0
            other = plain.linears[name].dequantize()
            assert ((other - weight).abs() < step / 2).float().mean() < 0.99


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"correction": "auto"},
        {"correction": "auto", "scales": "awq"},
        {"scales": "awq"},  # what the float model's linears read has none
        {"fisher_tokens": 100, "objective": "worst"},  # the first block is solved twice
        {"scales": "awq", "fisher_tokens": 100, "objective": "worst"},
    ],
)
@torch.no_grad()
def test_little_is_corrected_where_little_is_lost(options, calibration, tokenizer):
    model = tiny_llama(vocabulary=384, layers=3)
    ids = torch.arange(64)[None]
    options = {"bits": 8, "group_size": 16, "correction": 1.0, **options, "tokenizer": tokenizer}
    quantized = mlcalib.quantize(model, calibration, progress=False, **options)
    wanted = model(ids).logits
    assert (quantized.model(ids).logits - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("scales", [None, "awq"])
@pytest.mark.parametrize(
    "left", [["down_proj"], ["q_proj", "k_proj", "v_proj"], ["o_proj", "down_proj"]]
)
@torch.no_grad()
def test_an_input_may_have_nothing_to_solve(left, scales, calibration, tokenizer):
    model = tiny_llama(vocabulary=384, layers=3)
    ids = torch.arange(64)[None]
    options = {"bits": 8, "group_size": 16, "tokenizer": tokenizer, "scales": scales}
    quantized = mlcalib.quantize(
        model, calibration, ignore=left, correction=1.0, progress=False, **options
    )
    assert len(quantized.linears) == 3 * (7 - len(left))
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
