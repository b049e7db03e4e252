"""DataFrames and heat maps of losses and ranges."""

import io
import sys

import numpy as np
import pytest

from mlcalib.report import loss_frame, loss_heatmap, range_frame, range_heatmap

LOSSES = {
    "model.layers.0.self_attn.q_proj": {"en": 1.0, "sw": 4.0},
    "model.layers.0.mlp.down_proj": {"en": 3.0, "sw": 3.0},
    "model.layers.1.self_attn.q_proj": {"en": 0.02, "sw": 0.01},
    "model.layers.1.mlp.down_proj": {"en": 8.0, "sw": 16.0},
}
RANGES = {
    "model.layers.0.self_attn.q_proj": {"en": (-2.0, 1.0), "sw": (-1.0, 4.0)},
    "model.layers.0.self_attn.k_proj": {"en": (-2.0, 1.0), "sw": (-1.0, 4.0)},
    "model.layers.0.mlp.down_proj": {"en": (-8.0, 3.0), "sw": (0.0, 4.0)},
}
EXPERTS = {
    "model.layers.3.mlp.experts.0.up_proj": {"en": 1.0, "sw": 6.0},
    "model.layers.3.mlp.experts.11.up_proj": {"en": 3.0},
}


def panels(figure):
    """Title → what is drawn, [languages, blocks], in doublings."""
    return {each.get_title(): each.images[0].get_array() for each in figure.axes if each.images}


def test_loss_frame():
    frame = loss_frame(LOSSES)
    assert frame.index.names == ["block", "linear"]
    assert list(frame.index)[-1] == (1, "mlp.down_proj")
    assert frame.loc[1, "mlp.down_proj"].to_dict() == {"en": 8.0, "sw": 16.0}
    assert np.isnan(loss_frame(EXPERTS).loc[(3, "mlp.experts.11.up_proj"), "sw"])


def test_range_frame():
    frame = range_frame(RANGES)
    layer = frame.loc[0, "mlp.down_proj"]
    assert layer["low"].to_dict() == {"en": -8.0, "sw": 0.0}
    assert layer["high"].to_dict() == {"en": 3.0, "sw": 4.0}
    assert layer["absmax"].to_dict() == {"en": 8.0, "sw": 4.0}


def test_losses_against_the_mean_a_language_and_another_model():
    drawn = panels(loss_heatmap(LOSSES))
    assert list(drawn) == ["self_attn.q_proj", "mlp.down_proj"]
    np.testing.assert_allclose(drawn["self_attn.q_proj"], [[-1, 0.5], [1, -0.5]])
    np.testing.assert_allclose(drawn["mlp.down_proj"], [[0, -0.5], [0, 0.5]], atol=1e-12)

    drawn = panels(loss_heatmap(LOSSES, "en"))
    np.testing.assert_allclose(drawn["self_attn.q_proj"], [[0, 0], [2, -1]])

    half = {name: {code: loss / 2 for code, loss in by.items()} for name, by in LOSSES.items()}
    figure = loss_heatmap(LOSSES, half)
    for values in panels(figure).values():
        np.testing.assert_allclose(values, 1)
    assert figure.axes[0].get_yticklabels()[1].get_text() == "sw"


def test_linears_of_one_input_share_a_panel():
    drawn = panels(range_heatmap(RANGES, "en"))
    assert list(drawn) == ["self_attn.q_proj, k_proj", "mlp.down_proj"]
    np.testing.assert_allclose(drawn["self_attn.q_proj, k_proj"], [[0], [1]])
    np.testing.assert_allclose(drawn["mlp.down_proj"], [[0], [-1]])


def test_experts_are_one_panel():
    drawn = panels(loss_heatmap(EXPERTS, "en"))
    np.testing.assert_allclose(drawn["mlp.experts.up_proj"], [[0], [np.log2(6 / 2)]])


def test_a_language_that_was_never_seen_is_left_grey():
    never = {**LOSSES, "model.layers.1.mlp.down_proj": {"en": 8.0}}
    (_, value), *_ = panels(loss_heatmap(never, "en"))["mlp.down_proj"].T[1:]
    assert np.ma.is_masked(value) or np.isnan(value)


@pytest.mark.parametrize("blocks", [1, 30, 126])
def test_it_draws_any_number_of_blocks_and_leaves_nothing_behind(blocks):
    from matplotlib import pyplot

    losses = {
        f"layers.{block}.{linear}": {"en": 1.0, "sw": 1.1 ** (block % 7), "zh": 0.0}
        for block in range(blocks)
        for linear in ("q_proj", "o_proj", "up_proj")
    }
    file = io.BytesIO()
    loss_heatmap(losses, "en").savefig(file, format="png", dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


def test_bad_arguments():
    with pytest.raises(ValueError, match="There are no losses per language; quantize with a cali"):
        loss_heatmap({"model.layers.0.mlp.up_proj": {}})
    with pytest.raises(ValueError, match="There are no ranges per language"):
        range_frame({})
    with pytest.raises(ValueError, match="'fr' is none of the languages measured: en, sw"):
        range_heatmap(RANGES, "fr")
    with pytest.raises(ValueError, match="'lm_head' is not the name of a linear in a block"):
        loss_frame({"lm_head": {"en": 1.0}})


@pytest.mark.parametrize("package", ["pandas", "matplotlib.figure"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    with pytest.raises(ImportError, match=f"needs {name}, which is not installed.*'notebook'"):
        loss_heatmap(LOSSES)
