"""A study as an object: what it shows, and what it gives of the report."""

import csv

import pytest
import small_study
from small_html import Shown

import mlcalib
from mlcalib.report.page.canvas import INK

MIXES = {name: small_study.MIXES[name] for name in ("en", "multi10")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    small_study.build(folder, mixes=MIXES, budgets=(10240,))
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return mlcalib.Study(folder, resamples=200)


def test_tables_and_figures_are_those_of_the_report(study, tmp_path):
    page = study.report(tmp_path / "report.html")
    assert page.is_file()
    files = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert set(study.tables) == files
    for name in files:
        with (tmp_path / "tables" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        frame = study.table(name)
        assert len(frame) == len(rows)
        assert list(frame.columns) == list(rows[0])
    assert set(study.figures) == {path.stem for path in (tmp_path / "figures").glob("*.svg")}


def test_figures_take_the_colours_of_the_page(study):
    (name, *_) = study.figures
    drawn = study.figure(name)
    shown = drawn._repr_html_()
    assert shown.startswith("<svg")
    assert "currentColor" in shown
    assert INK not in shown
    assert repr(drawn) == f"StudyFigure '{name}'"
    assert drawn.figure.axes


def test_rows_are_those_of_all_evaluations(study):
    found = study.results
    assert isinstance(found, mlcalib.evaluate.__globals__["Results"])
    evaluations = study._computed.models[0].model.evaluations
    assert len(found) == sum(len(each.rows) for each in evaluations.values())


@pytest.mark.parametrize("what", ["table", "figure"])
def test_an_unknown_name_says_which_there_are(study, what):
    with pytest.raises(ValueError, match=f"no {what} 'x'; there are: .*rises"):
        getattr(study, what)("x")


def test_shows_where_it_stands(study, folder):
    count = len(study._computed.study.plan.variants)
    state = f"{count} of {count} checkpoints made, {count + 1} of {count + 1} models evaluated"
    assert repr(study) == f"Study in '{folder}': {state}"
    shown = Shown(study._repr_html_())
    assert state in shown.text
    header, *rows = shown.tables[0]
    assert header[:3] == ["model", "quantizer", "calibrated on"]
    settings = study.table("settings")
    best = settings.loc[settings.groupby("quantizer")["mean_rise"].idxmin(), "setting"]
    assert set(shown.strong) >= set(best.dropna())
    assert len(rows) >= len(best)


def test_a_study_that_is_not_begun(tmp_path):
    study = mlcalib.Study(tmp_path)
    assert repr(study) == f"Study in '{tmp_path}': not begun"
    assert "not begun" in Shown(study._repr_html_()).text
    with pytest.raises(FileNotFoundError):
        study.tables  # noqa: B018 - it is read


def test_a_study_that_goes_on_is_opened_anew(tmp_path, folder):
    small_study.build(tmp_path, mixes=MIXES, budgets=(10240,))
    model = tmp_path / "smollm2"
    for path in sorted((model / "evaluations").iterdir())[:2]:
        path.unlink()
    missing = mlcalib.Study(tmp_path, resamples=200)
    text = Shown(missing._repr_html_()).text
    assert "have no evaluation" in text
