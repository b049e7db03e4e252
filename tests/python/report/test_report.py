"""The report of a study: its numbers against independent computation, and its page."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import small_study
from report_files import Page, table
from small_study import LANGUAGES, MAIN

from mlcalib.report import write_report

MIXES = {name: small_study.MIXES[name] for name in ("en", "zh", "multi5", "multi10")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    small_study.build(folder, mixes=MIXES, budgets=(10240,))
    return folder


@pytest.fixture(scope="module")
def report(study):
    return write_report(study, resamples=400).parent


def load(folder, *path):
    return json.loads(folder.joinpath("smollm2", *path).read_text())


def losses(study, variant):
    """Language → Σ loss, Σ tokens, Σ bytes."""
    documents = load(study, "evaluations", f"{variant}.json")["documents"]
    return {
        code: [sum(each[key]) for key in ("loss", "tokens", "bytes")]
        for code, each in documents.items()
    }


def rises(study, variant):
    base, other = losses(study, "float"), losses(study, variant)
    return {code: (other[code][0] - base[code][0]) / base[code][1] for code in LANGUAGES}


def test_cells_are_what_the_documents_say(study, report):
    rows = table(report / "tables" / "rises.csv")
    assert len(rows) == 10 * (2 * (4 + 3) + 4)  # rtn beside each of four maps
    for row in rows[:: len(rows) // 23]:
        base, other = losses(study, "float")[row["language"]], losses(study, row["variant"])
        loss, tokens, size = other[row["language"]]
        expected = {
            "float_loss": base[0] / tokens,
            "loss": loss / tokens,
            "rise": (loss - base[0]) / tokens,
            "float_perplexity": math.exp(base[0] / tokens),
            "perplexity_rise": math.exp(loss / tokens) - math.exp(base[0] / tokens),
            "float_bits_per_byte": base[0] / math.log(2) / size,
            "bits_per_byte": loss / math.log(2) / size,
        }
        assert {key: float(row[key]) for key in expected} == pytest.approx(expected)
        assert float(row["rise_low"]) < float(row["rise"]) < float(row["rise_high"])
        assert float(row["rise_p"]) <= float(row["rise_p_holm"]) <= 1
        assert int(row["documents"]) == 14 + LANGUAGES.index(row["language"]) % 4


def test_intervals_have_the_width_of_a_standard_error(study, report):
    rows = table(report / "tables" / "rises.csv")
    row = next(row for row in rows if (row["variant"], row["language"]) == ("awq-w4-g64-en", "yo"))
    base, other = (
        load(study, "evaluations", f"{name}.json")["documents"]["yo"]
        for name in ("float", "awq-w4-g64-en")
    )
    size = np.array(base["tokens"])
    residual = np.array(other["loss"]) - base["loss"] - float(row["rise"]) * size
    n = len(size)
    error = math.sqrt((residual**2).sum() * n / (n - 1)) / size.sum()
    assert float(row["rise_high"]) - float(row["rise_low"]) == pytest.approx(4.26 * error, rel=0.2)


def test_best_and_standing_of_every_setting(study, report):
    names = [f"gptq-w4-g64-{name}" for name in MIXES]
    found = {name: rises(study, name) for name in names}
    best = {code: min(names, key=lambda name: found[name][code]) for code in LANGUAGES}
    rows = [
        row
        for row in table(report / "tables" / "rises.csv")
        if row["variant"] in names and row["tokens"] == str(MAIN)
    ]
    assert {row["language"]: row["variant"] for row in rows if row["best"] == "True"} == best

    standings = {
        row["variant"]: row
        for row in table(report / "tables" / "settings.csv")
        if row["variant"] in names
    }
    means = {name: np.mean(list(found[name].values())) for name in names}
    for name, row in standings.items():
        assert float(row["mean_rise"]) == pytest.approx(means[name])
        assert float(row["behind_best"]) == pytest.approx(means[name] - min(means.values()))
        worst = max(LANGUAGES, key=lambda code: found[name][code])
        assert row["worst_language"] == worst
        assert float(row["worst_rise"]) == pytest.approx(found[name][worst])
        assert int(row["wins"]) == list(best.values()).count(name)
        close = sum(
            float(cell["behind_best_p"]) >= 0.05
            for cell in rows
            if cell["variant"] == name and cell["best"] == "False"
        )
        assert int(row["not_told_apart_from_best"]) == close


def test_the_answer_comes_first_and_is_that_of_the_tables(study, report):
    text = (report / "report.md").read_text(encoding="utf-8")
    answer = text[: text.index("What was run")]
    rows = {row["variant"]: row for row in table(report / "tables" / "settings.csv")}
    best, english = rows["gptq-w4-g64-multi10"], rows["gptq-w4-g64-en"]
    assert "**gptq-w4-g64**: calibrating with `multi10` is best on the mean" in answer
    assert f"Token loss rises by {float(best['mean_rise']):.3f} [" in answer
    cost = float(english["mean_rise"]) - float(best["mean_rise"])
    assert f"English-only calibration (`en`) costs {cost:.3f} [" in answer
    assert "hurts Chinese (Han, simplified) (+" in answer
    assert "resamples, seed 0" in text
    assert "(14 to 17 of them a language)" in text


def test_predicted_loss_and_its_rank_correlation(study, report):
    pandas = pytest.importorskip("pandas")
    power = load(study, "layers.json")["power"]
    rows = table(report / "tables" / "predicted.csv")
    assert len(rows) == 10 * (2 * 7 + 1)
    for row in rows[::37]:
        heldout = load(study, "variants", f"{row['variant']}.json")["heldout"]
        code = row["language"]
        expected = sum(heldout[linear][code] / power[linear][code] for linear in heldout)
        assert float(row["predicted"]) == pytest.approx(expected)

    points = pandas.read_csv(report / "figures" / "predicted.csv")
    for row in table(report / "tables" / "rank_correlation.csv"):
        mine = points[points["quantizer"] == row["quantizer"]]
        if row["language"] != "all":
            mine = mine[mine["language"] == row["language"]]
        ranks = mine[["predicted", "rise"]].rank()
        assert float(row["spearman"]) == pytest.approx(ranks.corr().iloc[0, 1])
        assert int(row["n"]) == len(mine) == (70 if row["language"] == "all" else 7)


def test_layers_ranges_and_shares_outside(study, report):
    layers = load(study, "layers.json")
    heldout = load(study, "variants", "gptq-w4-g64-en.json")["heldout"]
    rows = table(report / "figures" / "layers-gptq-w4-g64.csv")
    assert len(rows) == 42 * 10
    row = rows[123]
    linear, code = row["linear"], row["language"]
    assert float(row["en"]) == pytest.approx(heldout[linear][code] / layers["power"][linear][code])
    for row in table(report / "tables" / "outside.csv")[::501]:
        found = layers["outside"][row["setting"]][row["linear"]][row["language"]]
        assert float(row["share"]) == found["share"]
        assert len(row["channels"].split()) == len(found["channels"])

    rows = table(report / "figures" / "outside.csv")
    found = {(row["setting"], row["language"], row["block"]): row for row in rows}
    mine = layers["outside"]["en"]
    inputs = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]  # distinct
    shares = [mine[f"model.layers.3.{linear}"]["ig"]["share"] for linear in inputs]
    assert float(found["en", "ig", "3"]["share"]) == pytest.approx(np.mean(shares))


def test_a_language_unfolds_to_its_layers_ranges_and_channels(study, report):
    text = (report / "report.html").read_text(encoding="utf-8")
    layers = load(study, "layers.json")
    power = layers["power"]
    first, second = (
        load(study, "variants", f"gptq-w4-g64-{name}.json")["heldout"] for name in ("en", "multi10")
    )
    excess = {
        linear: (first[linear]["sw"] - second[linear]["sw"]) / power[linear]["sw"]
        for linear in first
    }
    top = max(excess, key=excess.get)
    start = text.index("<summary>Swahili (Latin), gptq-w4-g64")
    part = text[start : text.index("</details>", start)]
    low, high = layers["ranges"][top]["en"]
    assert f'title="{top}"' in part
    row = part[part.index(f'title="{top}"') :]
    assert f"{low:.1f} to {high:.1f}".replace("-", "\u2212") in row
    outside = layers["outside"]["en"][top]["sw"]
    assert f"{100 * outside['share']:.3f} %" in row
    channel, share = max(outside["channels"].items(), key=lambda item: item[1])
    assert f"{channel} ({100 * share:.0f} %)" in row
    assert f"{100 * excess[top] / sum(excess.values()):.1f} %" in row


def test_costs(report):
    rows = {row["what"]: row for row in table(report / "tables" / "costs.csv")}
    assert float(rows["variants: solve"]["measured"]) == pytest.approx(15 * 3.7)
    assert float(rows["evaluation"]["measured"]) == pytest.approx(16 * 55.1)
    times = 655_360 / 232_106
    assert float(rows["forward"]["separate_runs_estimated"]) == pytest.approx(460 * times)
    assert float(rows["load"]["separate_runs_estimated"]) == pytest.approx(15 * 2.9)
    assert rows["peak memory"]["separate_runs_estimated"] == ""


def test_tasks(study, report):
    rows = table(report / "tables" / "tasks.csv")
    assert len(rows) == 4 * 2 * 5
    for row in rows[::7]:
        first, second = (
            load(study, "evaluations", f"{name}.json")["items"]["xnli"][row["language"]]
            for name in ("float", row["variant"])
        )
        assert float(row["change"]) == pytest.approx(np.mean(second) - np.mean(first))
        lost = sum(one > other for one, other in zip(first, second, strict=True))
        assert float(row["p"]) == pytest.approx(min(1, 2 * 0.5**lost))  # none was gained
        assert float(row["p_holm"]) >= float(row["p"])
    assert "no task" in (report / "report.md").read_text(encoding="utf-8")


def test_tasks_have_relative_changes_by_group_and_flips(study, report):
    rows = table(report / "tables" / "tasks_changes.csv")
    row = next(
        row
        for row in rows
        if (row["quantizer"], row["label"], row["task"], row["language"])
        == ("gptq-w4-g64", "multi10", "xnli", "zh")
    )
    first, second = (
        load(study, "evaluations", f"{name}.json")["items"]["xnli"]["zh"]
        for name in ("float", "gptq-w4-g64-multi10")
    )
    change = 100 * (np.mean(second) / np.mean(first) - 1)
    assert float(row["change"]) == pytest.approx(change)
    groups = {
        row["group"]: row
        for row in table(report / "tables" / "tasks_groups.csv")
        if (row["quantizer"], row["label"], row["task"]) == ("gptq-w4-g64", "multi10", "xnli")
    }
    assert float(groups["other scripts"]["mean_change"]) == pytest.approx(change)
    flips = [
        row
        for row in table(report / "tables" / "tasks_flips.csv")
        if (row["quantizer"], row["label"], row["language"]) == ("gptq-w4-g64", "multi10", "zh")
    ]
    assert [(row["right_to_wrong"], row["wrong_to_right"]) for row in flips] == [
        (str(sum(first) - sum(second)), "0")
    ]
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "gptq-w4-g64: relative change, by script, family and resource tier" in text


def test_curves(study, report):
    rows = table(report / "figures" / "curves-gptq-w4-g64.csv")
    assert [int(row["tokens"]) for row in rows] == [10240] * 3 + [MAIN] * 4
    row = next(row for row in rows if row["setting"] == "multi5-10240")
    found = rises(study, "gptq-w4-g64-multi5-10240")
    assert float(row["mean_rise"]) == pytest.approx(np.mean(list(found.values())))
    assert float(row["worst_rise"]) == pytest.approx(max(found.values()))
    assert float(row["seconds"]) == pytest.approx((460 + 159) * 10240 / 232_106)
    assert row["languages"] == "5"


def test_the_page_is_whole_and_needs_nothing_else(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    inner = [each[1:] for each in page.refers if each.startswith("#")]
    assert set(inner) <= set(page.ids)
    files = [each for each in page.refers if not each.startswith(("#", "data:image/png;"))]
    assert files
    for each in files:
        assert (report / each).is_file(), each
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object"}
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text
    assert page.tags["details"] > 30


def test_every_figure_is_there_in_three_forms(report):
    names = {path.stem for path in (report / "figures").iterdir()}
    assert names == {
        "rises-gptq-w4-g64", "rises-awq-w4-g64", "layers-gptq-w4-g64", "layers-awq-w4-g64",
        "curves-gptq-w4-g64", "curves-awq-w4-g64", "predicted", "outside",
    }  # fmt: skip
    for name in names:
        assert (report / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (report / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert table(report / "figures" / f"{name}.csv")
