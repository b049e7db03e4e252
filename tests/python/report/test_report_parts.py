"""Parts of the report: colours, names, ranks, inputs, which settings compete."""

import numpy as np
import pytest
import small_study

from mlcalib.report.page.colours import CATEGORIES, diverging, faded, ink, ratio_share, sequential
from mlcalib.report.page.words import full_name, hint, listed, seconds, signed, size
from mlcalib.report.study_report.comparison import grids, measure
from mlcalib.report.study_report.folder import StudyFile, read_study
from mlcalib.report.study_report.layers import activations, by_block, place, short, spearman

SHARES = np.linspace(0, 1, 21)


def luminance(colour):
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first, second):
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scale", [diverging, sequential, lambda share: diverging(-share)])
def test_scales_darken_evenly_and_numbers_stay_legible(scale):
    colours = [scale(share) for share in SHARES]
    lightness = [luminance(colour) ** (1 / 3) for colour in colours]
    steps = -np.diff(lightness)
    assert (steps > 0).all()
    assert steps.max() < 1.6 * steps.min()
    assert all(contrast(colour, ink(colour)) >= 4.5 for colour in colours)
    assert scale(1) == scale(7)


def test_the_arms_are_told_apart_without_red_against_green():
    """A reader who cannot tell red from green still has blue, which differs by far."""
    for share in (0.3, 0.6, 1.0):
        warm, cold = diverging(share), diverging(-share)
        assert int(cold[5:], 16) - int(warm[5:], 16) > 60 * share
    assert diverging(0) == sequential(0) == diverging(-0.0)


def test_what_is_not_significant_turns_pale_and_grey():
    for share in SHARES[5:]:
        assert luminance(faded(diverging(share))) > luminance(diverging(share))
        assert contrast(faded(diverging(share)), "#4a4a4a") >= 4.5


def test_markers_and_colours_of_many_languages_differ():
    from mlcalib.report.study_report.curve_figures import MARKERS

    pairs = [(CATEGORIES[at % len(CATEGORIES)], MARKERS[at % len(MARKERS)]) for at in range(50)]
    assert len(set(pairs)) == 50


def test_ratios_on_a_scale():
    assert ratio_share(1, 1.5) == 0
    assert ratio_share(2, 2) == 0.5
    assert ratio_share(0.25, 2) == -1
    assert ratio_share(0, 2) == -1
    assert ratio_share(float("inf"), 2) == 1


def test_names_and_numbers():
    assert full_name("sw") == "Swahili (Latin)"
    assert full_name("zh") == "Chinese (Han, simplified)"
    assert full_name("code") == "Source code"
    assert full_name("tlh") == "tlh"
    assert hint("ar") == "ar, written from right to left"
    assert hint("sw") == "sw"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert signed(-0.1234) == "\u22120.123"
    assert [seconds(each) for each in (3.14, 252, 7260)] == ["3.1 s", "4 min 12 s", "2 h 1 min"]
    assert [size(each) for each in (2 * 2**30, 5 * 2**20, None)] == [
        "2.00 GiB",
        "5.00 MiB",
        "not measured",
    ]


def test_ranks():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)  # ties
    assert spearman([1, 2, 3], [5, 5, 5]) is None
    assert spearman([1, 2], [1, 2]) is None
    with pytest.raises(ValueError, match="3 and 2 values"):
        spearman([1, 2, 3], [1, 2])


def test_places_of_linears():
    assert place("model.layers.3.mlp.up_proj") == (3, "mlp.up_proj")
    assert place("model.layers.12.mlp.experts.7.up_proj") == (12, "mlp.experts.up_proj")
    assert short("model.layers.3.mlp.up_proj") == "3 up_proj"
    assert short("model.layers.3.mlp.experts.7.up_proj") == "3 experts.7.up_proj"
    experts = {f"layers.0.mlp.experts.{at}.up_proj": float(at) for at in range(3)}
    assert by_block(experts) == {(0, "mlp.experts.up_proj"): 1.0}
    with pytest.raises(ValueError, match="'lm_head' is not the name of a linear in a block"):
        place("lm_head")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    mixes = {name: small_study.MIXES[name] for name in ("en", "multi5", "multi10")}
    small_study.build(folder, mixes=mixes, budgets=(10240,), tasks=())
    return read_study(folder)


def test_linears_of_one_input_are_one(study):
    found = activations(study, study.models[0], "multi5")
    leaves = [[name.rpartition(".")[2] for name in group] for group in found.groups]
    assert leaves == small_study.BLOCKS * [
        ["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"],
    ]  # fmt: skip
    ranges = study.models[0].layers.ranges["model.layers.2.mlp.down_proj"]
    each = found.inputs("ha")[2 * 4 + 3]
    mixed = [ranges[code] for code in ("en", "fr", "sw", "zh", "yo")]
    assert each.calibrated == (min(low for low, _ in mixed), max(high for _, high in mixed))
    assert each.name == "2 down_proj"
    assert found.inputs("ha")[0].name == "0 q_proj, k_proj, v_proj"


def test_settings_compete_at_equal_budgets_and_rounding_does_not(study):
    measured = measure(study.plan, study.models[0], resamples=50, seed=0)
    found = grids(study.plan, measured)
    assert [(grid.quantizer, grid.tokens) for grid in found] == [
        (quantizer, tokens)
        for tokens in (40960, 10240)
        for quantizer in ("gptq-w4-g64", "awq-w4-g64")
    ]
    for grid in found:
        assert {study.plan.settings[each.setting].tokens for each in grid.columns} == {grid.tokens}
        assert [each.label for each in grid.references] == ["none (rtn)"]
        assert grid.best("sw") in {each.variant for each in grid.columns}
    assert found[0].english().column.label == "en"
    assert found[0].multilingual().column.label == "multi10"
    assert found[2].english().column.label == "en-10240"


def test_code_and_mathematics_do_not_make_a_setting_more_multilingual(study):
    plan = study.plan.model_dump(by_alias=True)
    plan["settings"]["multi5"]["languages"] = dict.fromkeys(
        [*small_study.LANGUAGES, "code", "math"], 3413
    )
    changed = StudyFile.model_validate(plan)
    measured = measure(changed, study.models[0], resamples=50, seed=0)
    assert grids(changed, measured)[0].multilingual().column.label == "multi10"


def test_a_cell_and_the_means_use_the_same_draws(study):
    """The mean over one language is that language."""
    plan = study.plan.model_copy(
        update={"evaluation": study.plan.evaluation.model_copy(update={"languages": ["sw"]})}
    )
    measured = measure(plan, study.models[0], resamples=200, seed=4)
    variant = "gptq-w4-g64-multi5"
    assert measured.mean(variant) == measured.rise(variant, "sw")
    assert measured.worst(variant) == "sw"
    back = measured.rise(variant, "sw", "gptq-w4-g64-en")
    assert measured.between_worst(variant, "gptq-w4-g64-en") == back
    assert back.seed == 4
