"""Quality by name: what it stands for, and what it refuses beside it."""

import pytest
from small_models import save_tiny_llama

import mlcalib


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def text(folder):
    return mlcalib.calibration(folder, "en,sw", "sample", tokens=128, seq_len=32)


@pytest.fixture
def quantize(folder, text):
    def quantize(**options):
        given = {} if not isinstance(options.get("method", ""), str) else {"group_size": 32}
        return mlcalib.quantize(folder, text, progress=False, **given, **options)

    return quantize


@pytest.mark.parametrize(
    ("quality", "propagate", "options"),
    [
        ("fast", "float", {"sweeps": 3}),
        ("balanced", "quantized", {"sweeps": 3, "correction": "auto"}),
        (
            "best",
            "quantized",
            {"sweeps": 3, "correction": "auto", "fisher_tokens": 10240},
        ),
    ],
)
def test_a_name_is_a_recipe(quantize, quality, propagate, options):
    named = quantize(quality=quality, bits=3)
    spelled = quantize(method="gptq", propagate=propagate, bits=3, **options)
    assert named.recipe == spelled.recipe
    assert named.losses == spelled.losses
    assert (
        quantize(method=mlcalib.GPTQ(bits=3, group_size=32), quality=quality).recipe == named.recipe
    )


def test_without_a_name_nothing_changes(quantize):
    assert quantize().recipe == quantize(propagate="quantized").recipe


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quality": "bets"}, "Unknown quality 'bets'. Did you mean 'best'"),
        ({"quality": "best", "method": "awq"}, "gptq's options, but method is 'awq'"),
        (
            {"quality": "best", "propagate": "float"},
            "means propagate=quantized, but propagate=float",
        ),
        ({"quality": "balanced", "correction": 0.5}, "means correction=auto, but correction=0.5"),
    ],
)
def test_what_contradicts_is_refused(quantize, asked, message):
    with pytest.raises(ValueError, match=message):
        quantize(**asked)
