"""Results as DataFrame, pivot table, plot and HTML."""

import math
import re
import sys
import warnings

import pytest
from small_html import Shown

from mlcalib.results.rows import Results, Row

FLOAT, RTN, GPTQ = ("m", "float", "none"), ("m", "rtn", "none"), ("m", "gptq", "en+sw")
VALUES = {FLOAT: (10.0, 200.0), RTN: (14.0, 260.0), GPTQ: (12.0, 280.0)}


def row(model, language, value, metric="perplexity", task="perplexity", stderr=0.5):
    return Row(*model, language, task, metric, value, stderr, 100)


@pytest.fixture
def results():
    return Results(
        row(model, code, value)
        for model, values in VALUES.items()
        for code, value in zip(("sw", "en"), values, strict=True)
    )


@pytest.fixture
def tasks(results):
    results += [
        row(model, "en", value, "acc", task)
        for task in ("xnli", "xcopa")
        for model, value in ((FLOAT, 0.8), (RTN, 0.5), (GPTQ, 0.625))
    ]
    return results


def test_every_row_and_field_is_in_the_frame(tasks):
    frame = tasks.to_pandas()
    assert [Row(**line) for line in frame.to_dict("records")] == list(tasks)
    assert list(Results().to_pandas().columns) == list(Row.__dataclass_fields__)


def test_pivot_keeps_the_order_and_units_of_rows(tasks):
    table = tasks.pivot()
    assert list(table.columns) == ["float", "rtn", "gptq en+sw"]
    assert table.loc["sw"].tolist() == [10.0, 14.0, 12.0]
    assert list(table.index) == ["sw", "en"]
    both = tasks.pivot("acc")
    assert both.loc[("xcopa", "en"), "gptq en+sw"] == 0.625
    assert tasks.pivot("acc", "xnli").loc["en", "rtn"] == 0.5


def test_a_cell_that_was_not_measured_is_empty(results):
    del results[-1]
    assert math.isnan(results.pivot().loc["en", "gptq en+sw"])
    assert Shown(results._repr_html_()).tables[0][2][3] == "not measured"
    assert len(results.plot().axes[0].containers) == 3


def test_the_best_of_the_quantized_stands_out_and_errors_are_shown(tasks):
    shown = Shown(tasks._repr_html_())
    assert shown.tables[0] == [
        ["language", "float", "rtn", "gptq en+sw"],
        ["sw", "10.00 ± 0.50", "14.00 ± 0.50", "12.00 ± 0.50"],
        ["en", "200.00 ± 0.50", "260.00 ± 0.50", "280.00 ± 0.50"],
    ]
    assert shown.strong[1:] == ["12.00 ± 0.50", "260.00 ± 0.50", *["62.5 ± 50.0"] * 2]
    assert "xnli: acc, % (higher is better)" in shown.text


def test_intervals_stand_beside_their_metric():
    of = {"task": "fidelity", "stderr": None}
    rises = {"loss_rise": 0.1, "loss_rise_low": 0.05, "loss_rise_high": 0.15, "loss_rise_p": 0.01}
    shown = Shown(Results(row(RTN, "en", v, k, **of) for k, v in rises.items())._repr_html_())
    assert shown.tables == [[["language", "rtn"], ["en", "0.1000 [0.0500, 0.1500]"]]]


def test_plots_have_a_panel_for_each_task_and_errors_in_per_cent(tasks):
    figure = tasks.plot("acc")
    assert [axes.get_title() for axes in figure.axes] == ["xnli", "xcopa"]
    assert figure.axes[0].get_ylabel() == "acc, %"
    (line, _, (bars,)) = figure.axes[1].containers[2]
    assert line.get_ydata().tolist() == [62.5]
    assert bars.get_segments()[0][:, 1].tolist() == [12.5, 112.5]
    assert tasks.plot().axes[0].get_yscale() == "log"  # 10 to 280
    assert tasks.plot("acc").axes[0].get_yscale() == "linear"
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_plots_are_drawn_in_the_colours_of_the_page():
    rows = [row(model, "zh", 1.0 + at, "token_loss") for at, model in enumerate((FLOAT, RTN))]
    figure = Results(rows).plot("token_loss")
    figure.axes[0].set_title("損失")  # which matplotlib's own font has not
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figure._repr_html_()
    assert drawn.startswith("<svg ")
    assert ">損失</text>" in drawn
    assert 'fill="currentColor"' in drawn
    colours = set(re.findall("#[0-9a-f]{6}", drawn))
    assert not colours & {"#000000", "#ffffff"}
    assert {"#0072b2", "#e69f00"} <= colours
    assert figure.axes[0].patch.get_visible()  # as savefig draws it


def test_its_repr_is_short(tasks):
    assert repr(tasks) == (
        "Results: 12 rows of 3 models (float, rtn, gptq en+sw) in 2 languages (sw en)\n"
        "perplexity (perplexity); xnli (acc); xcopa (acc)"
    )
    assert repr(Results()) == "Results: no rows"
    assert Shown(Results()._repr_html_()).tables == []


def test_what_cannot_be_asked(results):
    with pytest.raises(ValueError, match=r"Unknown metric 'perplexit'. Did you mean 'perplexity'"):
        results.pivot("perplexit")
    with pytest.raises(ValueError, match=r"Unknown task 'xnli'. Available: perplexity"):
        results.plot("acc", "xnli")
    with pytest.raises(ValueError, match="There are no rows"):
        Results().plot()
    results.append(results[0])
    with pytest.raises(ValueError, match="perplexity of float in 'sw' is there twice"):
        results.pivot()


@pytest.mark.parametrize(
    ("package", "use"), [("pandas", "to_pandas"), ("pandas", "pivot"), ("matplotlib", "plot")]
)
def test_a_missing_package_is_named(results, monkeypatch, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.figure", None)
    with pytest.raises(ImportError, match=f"needs {package}, which is not installed; run: pip in"):
        getattr(results, use)()
