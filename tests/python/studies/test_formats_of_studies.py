"""Variants of a study in other formats, or without any, and what is said of their sizes."""

import json

import pytest
from small_models import save_tiny_llama
from small_text import write_texts

import mlcalib
from mlcalib.studies import read_study, variants_of

PRESET = "quantization-multilingual-small"
WAYS = ["W8", "W8A8", "W8A8-SmoothQuant-en", "W4-en", "W4-g-en", "NF4", "llm_int8"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("text"), ["en", "sw"])


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def finished(model, text, tmp_path_factory):
    """The preset on a tiny model."""
    return run(PRESET, tmp_path_factory.mktemp("study"), **options(model, text))


def options(model, text):
    return {
        "models": [str(model)],
        "corpus": f"files:{text}",
        "tokens": 200,
        "seq_len": 32,
        "evaluation": {"languages": "en,sw", "tokens": 64},
    }


def run(spec, out, **changes):
    return mlcalib.study(spec, out, progress=False, echo=lambda _: None, **changes)


def test_presets_have_the_ways_of_the_paper():
    for preset in (PRESET, "quantization-multilingual"):
        assert list(variants_of(read_study(preset))) == WAYS
    large = read_study("quantization-multilingual")
    assert large.evaluation.languages == "aya23"
    assert {"mmmlu", "mgsm", "belebele", "flores", "language_confusion"} < set(
        large.evaluation.tasks
    )


def test_keys_of_an_evaluation_are_changed_one_by_one():
    changed = read_study(PRESET, evaluation={"tokens": 64}).evaluation
    assert changed == read_study(PRESET).evaluation.model_copy(update={"tokens": 64})
    assert read_study(PRESET, evaluation=None).evaluation is None


def test_each_way_is_held_in_its_format(finished):
    folder = finished.folder / "tiny"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == set(WAYS) - {"llm_int8"}
    held = {
        path.name: json.loads((path / "config.json").read_text())["quantization_config"]
        for path in (folder / "checkpoints").iterdir()
    }
    assert held["NF4"]["bnb_4bit_quant_type"] == "nf4"
    assert held["W8A8"]["format"] == held["W8A8-SmoothQuant-en"]["format"] == "int-quantized"
    assert held["W8"]["format"] == held["W4-g-en"]["format"] == "pack-quantized"
    gathered = json.loads((folder / "costs.json").read_text())
    assert (gathered["tokens"], gathered["separate_tokens"]) == (200, 3 * 200)


def test_checkpoints_are_those_of_separate_runs(finished, model, text, tmp_path):
    calibration = mlcalib.calibration(model, "en", f"files:{text}", tokens=200, seq_len=32)
    for name, given in (("W8A8-SmoothQuant-en", calibration), ("W8A8", None)):
        method = {} if given else {"method": "rtn"}
        mlcalib.quantize_checkpoint(
            model,
            tmp_path / name,
            given,
            scheme="W8A8",
            propagate="float",
            progress=False,
            **method,
        )
        made = finished.folder / "tiny" / "checkpoints" / name / "model.safetensors"
        assert made.read_bytes() == (tmp_path / name / "model.safetensors").read_bytes()


def test_rows_say_which_variant(finished):
    named = {(row.method, row.calibration) for row in finished.results}
    ways = {name.removesuffix("-en"): "en" if name.endswith("-en") else "none" for name in WAYS}
    assert named == {("float", "none"), *ways.items()}
    assert {row.language for row in finished.results if row.task == "llm_int8"} == {"en", "sw"}


def test_sizes_are_a_table_and_a_figure(finished):
    table = finished.table("sizes").set_index("variant")
    bits = table["bits_per_weight"].to_dict()
    assert list(bits) == WAYS
    assert bits["W4-g-en"] == 4 + 16 / 64
    assert bits["NF4"] == 4 + 32 / 64
    rows = {64: 2 * (64 + 2 * 32 + 64) + 2 * 2 * 128, 128: 2 * 64}  # input channels → output rows
    weights = sum(channels * count for channels, count in rows.items())
    assert bits["W8"] == bits["W8A8"] == pytest.approx(8 + 16 * sum(rows.values()) / weights)
    assert bits["llm_int8"] == pytest.approx(8 + 32 * sum(rows.values()) / weights)
    assert (table["mean_kl"] > 0).all()
    assert (table["worst_kl"] >= table["mean_kl"]).all()
    drawn = finished.figure("size").figure
    assert [axes.get_title() for axes in drawn.axes] == ["mean of languages", "worst language"]
    assert {text.get_text() for text in drawn.axes[1].get_legend().get_texts()} == {"none", "en"}


def test_all_ways_stand_side_by_side_in_the_groups(finished):
    groups = finished.table("tasks_groups")
    assert set(groups["label"]) == {name.removesuffix("-en") for name in WAYS}
    assert set(groups["task"]) == {"perplexity"}
    assert {"script", "family", "resource tier"} <= set(groups["grouping"])
    page = finished.report().read_text()
    assert "What quantization changed: perplexity" in page
    assert "Quality against size" in page


def test_it_says_where_it_stands(finished, model, text):
    assert "6 of 6 checkpoints made, 8 of 8 models evaluated" in repr(finished)
    (planned,) = run(PRESET, finished.folder, plan_only=True, **options(model, text)).plans
    assert planned.todo == []
    quantizers = [{"scheme": ["NF4", "MXFP4A16"]}]
    changes = options(model, text) | {"quantizers": quantizers}
    (planned,) = run(PRESET, finished.folder, plan_only=True, **changes).plans
    assert planned.todo == ["gptq-NF4-en", "gptq-MXFP4A16-en"]
    assert planned.tokens == 200


@pytest.mark.parametrize(
    ("quantizer", "names"),
    [
        ({"scheme": ["NF4", "W8A8"]}, ["gptq-NF4-en", "smoothquant-W8A8-en"]),
        ({"method": "rtn", "scheme": "W4A16", "group_size": 64}, ["rtn-W4A16-g64"]),
        ({"method": ["smoothquant", "gptq"], "bits": 8}, ["smoothquant+gptq-w8-g128-en"]),
        ({"method": "rtn", "format": ["gptq", "dense"]}, ["rtn-w4-g128-gptq", "rtn-w4-g128-dense"]),
        ({"method": "llm_int8", "threshold": [6, 3.5]}, ["llm_int8", "llm_int8-threshold_3.5"]),
        ({"method": "rtn", "scheme": "NF4", "name": "mine"}, ["mine"]),
        (
            {"scheme": "FP8", "activation_clip": [0, 1e-4]},
            ["gptq-FP8-en", "gptq-FP8-clip_0.0001-en"],
        ),
        ({"method": mlcalib.GPTQ(bits=3), "format": "gptq"}, ["gptq-w3-g128-gptq-en"]),
    ],
)
def test_labels_say_what_was_asked_for(quantizer, names):
    assert list(variants_of(read_study(PRESET, quantizers=[quantizer]))) == names


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ({"bits": 4}, "neither method nor scheme"),
        ({"scheme": "W9"}, "Unknown scheme 'W9'"),
        ({"scheme": "NF4", "bits": 8}, "means bits=4, but bits=8"),
        ({"scheme": "NF4", "format": "gguf"}, "only the format 'bitsandbytes' holds"),
        ({"method": "rtn", "format": "gguff"}, "Did you mean 'gguf'"),
        ({"method": "rtn", "format": "bitsandbytes"}, "numbers"),
        ({"method": ["rtn", "gptq"]}, "rtn, which scales no channels"),
        ({"method": "llm_int8", "scheme": "W8A8"}, "leave scheme out"),
        ({"method": "llm_int8", "bits": 8}, "bits"),
        ({"method": "llm_int8", "threshold": -1}, "greater than or equal to 0"),
        ({"method": "rtn", "name": "a/b"}, "pattern"),
        ({"method": "rtn", "name": "float"}, "Two variants are called 'float'"),
        ({"method": mlcalib.GPTQ(bits=3), "bits": 3}, "bits is given twice"),
        ({"scheme": "NF4", "activation_clip": 0.1}, "stores no ranges of activations"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(quantizer, message, model, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(PRESET, tmp_path / "out", **options(model, text) | {"quantizers": [quantizer]})
    assert not (tmp_path / "out").exists()


def test_llm_int8_needs_an_evaluation(model, text, tmp_path):
    with pytest.raises(ValueError, match="is only evaluated, but the study has no evaluation"):
        run(PRESET, tmp_path / "out", **options(model, text) | {"evaluation": None})


@pytest.fixture(scope="module")
def static(model, text, tmp_path_factory):
    """Static FP8 of two settings, by two methods, with two shares that may be clipped."""
    changes = options(model, text) | {
        "name": "static",
        "settings": ["en", "sw"],
        "quantizers": [
            {"method": "rtn", "scheme": "FP8"},
            {"scheme": "FP8", "activation_clip": [0, 0.01]},
        ],
        "evaluation": None,
        "layers": None,
    }
    return run(changes, tmp_path_factory.mktemp("static"))


def test_ranges_of_inputs_are_those_of_each_setting(static):
    made = {path.name for path in (static.folder / "tiny" / "checkpoints").iterdir()}
    assert made == {
        f"{way}-{setting}"
        for way in ("rtn-FP8", "gptq-FP8", "gptq-FP8-clip_0.01")
        for setting in ("en", "sw")
    }


def test_what_is_clipped_is_known_of_languages_that_a_setting_lacks(static):
    table = static.table("clipped")
    assert set(table["language"]) == {"en", "sw"}
    own = table["language"] == table["setting"]
    clipping = table["variant"].str.contains("clip_0.01")
    assert (table[own & ~clipping]["share"] == 0).all()
    assert table[~own & ~clipping]["share"].max() > 0
    assert 0 < table[own & clipping]["share"].max() <= 0.01
    assert table[~own & clipping]["share"].max() > 0.01
    assert "Activations clipped by static ranges" in static.report().read_text()


def test_shares_are_those_of_a_separate_run(static, model, text, tmp_path):
    calibration = mlcalib.calibration(model, "sw", f"files:{text}", tokens=200, seq_len=32)
    record = mlcalib.quantize_checkpoint(
        model,
        tmp_path / "alone",
        calibration,
        scheme="FP8",
        activation_clip=0.01,
        propagate="float",
        progress=False,
    )
    table = static.table("clipped")
    mine = table[(table["variant"] == "gptq-FP8-clip_0.01-sw") & (table["language"] == "sw")]
    assert mine.set_index("linear")["share"].to_dict() == pytest.approx(
        {name: layer["input_clipped"]["sw"] for name, layer in record["layers"].items()}
    )
