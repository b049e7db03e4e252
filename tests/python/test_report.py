"""The report of a study: its numbers against independent computation, its files, its errors."""

import csv
import html.parser
import json
import math
import re
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import small_study
from small_study import LANGUAGES, MAIN

from mlcalib.cli import main
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


@pytest.fixture
def copy(study, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(study, tmp_path / "copy", ignore=shutil.ignore_patterns("report"))
    return tmp_path / "copy"


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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
        assert float(row["mcnemar_p"]) == pytest.approx(min(1, 2 * 0.5**lost))  # none was gained
        assert float(row["mcnemar_p_holm"]) >= float(row["mcnemar_p"])
    assert "no task" in (report / "report.md").read_text(encoding="utf-8")


def test_curves(study, report):
    rows = table(report / "figures" / "curves-gptq-w4-g64.csv")
    assert [int(row["tokens"]) for row in rows] == [10240] * 3 + [MAIN] * 4
    row = next(row for row in rows if row["setting"] == "multi5-10240")
    found = rises(study, "gptq-w4-g64-multi5-10240")
    assert float(row["mean_rise"]) == pytest.approx(np.mean(list(found.values())))
    assert float(row["worst_rise"]) == pytest.approx(max(found.values()))
    assert float(row["seconds"]) == pytest.approx((460 + 159) * 10240 / 232_106)
    assert row["languages"] == "5"


class Page(html.parser.HTMLParser):
    """What is open, and what is referred to."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.refers, self.tags = [], [], [], Counter()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.refers.append(value)
        if tag != "meta" and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


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


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    small_study.build(folder, mixes={"en": ["en"], "multi10": LANGUAGES}, budgets=(), tasks=())
    return folder


def test_same_study_same_bytes(tiny, tmp_path):
    first = write_report(tiny, resamples=50).parent
    second = write_report(tiny, tmp_path / "again" / "report.html", resamples=50).parent
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_an_unfinished_study_says_what_is_missing(tiny):
    (tiny / "smollm2" / "evaluations" / "gptq-w4-g64-en.json").unlink()
    (tiny / "smollm2" / "variants" / "awq-w4-g64-en.json").unlink()
    (tiny / "smollm2" / "costs.json").unlink()
    page = write_report(tiny, resamples=50)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "1 of 6 have no evaluation: `gptq-w4-g64-en`" in text
    assert "1 of 5 have no checkpoint: `awq-w4-g64-en`; costs.json: time and memory" in text
    assert "**gptq-w4-g64**: only `multi10` is measured in all languages" in text
    assert "awq-w4-g64: layer losses are not measured." in text
    assert re.search(r"\| peak memory +\| +not measured \|", text)
    assert re.search(r"\| solving +\| +14.8 s \| +not measured \|", text)
    rows = table(page.parent / "tables" / "rises.csv")
    missing = [row for row in rows if row["measured"] == "False"]
    assert {row["variant"] for row in missing} == {"gptq-w4-g64-en"}
    assert len(missing) == 10


def test_a_study_that_only_began(tiny):
    shutil.rmtree(tiny / "smollm2")
    text = write_report(tiny, resamples=50).with_suffix(".md").read_text(encoding="utf-8")
    assert "**gptq-w4-g64**: not measured in all languages yet." in text
    assert "6 of 6 have no evaluation" in text
    assert "Perplexity is not measured." in text
    assert "Activation ranges are not measured." in text


def test_a_study_without_evaluation_still_shows_its_layers(tiny):
    content = json.loads((tiny / "study.json").read_text())
    small_study.write(tiny / "study.json", content | {"evaluation": {}})
    shutil.rmtree(tiny / "smollm2" / "evaluations")
    page = write_report(tiny, resamples=50)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "**gptq-w4-g64**: the study has no evaluation." in text
    assert "Perplexity is not measured." in text
    assert "summed over the linears of a kind" in text
    assert "| Chinese (Han, simplified) (zh)" in text
    assert table(page.parent / "tables" / "layer_losses.csv")


def test_several_models_and_rounding_alone(tmp_path):
    small_study.build(tmp_path, models=("one", "two"), mixes={}, budgets=(), tasks=())
    page = write_report(tmp_path, resamples=50)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    for slug in ("one", "two"):
        assert f"On `{slug}`: **rtn-w4-g64** needs no calibration: token loss rises by" in text
        assert f"## Model {slug}" in text
        assert (page.parent / "figures" / f"{slug}-rises-rtn-w4-g64.pdf").is_file()
    assert {row["model"] for row in table(page.parent / "tables" / "rises.csv")} == {"one", "two"}


def test_one_document_names_in_any_script_and_marks_that_html_minds(tmp_path):
    study = small_study.build(
        tmp_path, mixes={"en": ["en"], "<b>لغة": ["en", "sw"]}, budgets=(), tasks=(), documents=2
    )
    for path in (tmp_path / "smollm2" / "evaluations").iterdir():
        content = json.loads(path.read_text())
        texts = content["documents"]
        texts["zh"] = {key: [sum(values)] for key, values in texts["zh"].items()}
        texts["ar"] = texts.pop("yo")
        path.write_text(json.dumps(content))
    study["evaluation"]["languages"][LANGUAGES.index("yo") :] = ["ar"]
    small_study.write(tmp_path / "study.json", study)
    text = write_report(tmp_path, resamples=50).read_text(encoding="utf-8")
    Page().feed(text)
    assert "<b>" not in text
    assert "<bdi>&lt;b&gt;لغة</bdi>" in text
    assert 'title="ar, written from right to left"' in text
    assert "[one document: no interval]" in text
    assert "Fewer than 6 documents: <bdi>English (Latin)</bdi>" in text


def damage(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


EVALUATION = "smollm2/evaluations/gptq-w4-g64-en.json"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("study.json", lambda it: it.update(layout=2), "its layout is 2; this mlcalib reads 1"),
        ("study.json", lambda it: it.pop("variants"), "variants: Field required"),
        ("study.json", lambda it: it["settings"].pop("en"), "has the unknown setting 'en'"),
        (
            EVALUATION,
            lambda it: it["documents"]["sw"]["loss"].pop(),
            "documents; expected the same",
        ),
        (EVALUATION, lambda it: it["documents"]["sw"].pop("bytes"), "documents.sw.bytes: Field"),
        (
            EVALUATION,
            lambda it: it["documents"]["sw"]["tokens"].reverse(),
            "other documents in 'sw' than float.json",
        ),
        (
            EVALUATION,
            lambda it: it["items"]["xnli"]["sw"].pop(),
            "has 299 items of xnli in 'sw', float.json beside it 300",
        ),
        (
            EVALUATION,
            lambda it: it["documents"]["sw"]["loss"].__setitem__(0, math.nan),
            r"documents.sw.loss.0: Input should be a finite number",
        ),
        (
            "smollm2/layers.json",
            lambda it: it.update(power=3),
            "power: Input should be a valid dict",
        ),
        ("smollm2/costs.json", lambda it: it.update(tokens="many"), "tokens: Input should be"),
    ],
)
def test_a_damaged_file_is_named(copy, name, change, message):
    damage(copy, name, change)
    with pytest.raises(ValueError, match=message) as caught:
        write_report(copy)
    assert str(copy / name) in str(caught.value)
    assert not (copy / "report").exists()


def test_a_truncated_file_is_named(copy):
    path = copy / "smollm2" / "variants" / "awq-w4-g64-zh.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match=r"awq-w4-g64-zh\.json is damaged"):
        write_report(copy)


def test_bad_arguments(study, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a study folder: there is no study"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="expected a name that ends in"):
        write_report(study, tmp_path)


@pytest.mark.parametrize("package", ["pandas", "matplotlib"])
def test_a_missing_package_is_named(study, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}, which is not installed"):
        write_report(study, tmp_path / "report.html", resamples=20)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mlcalib", "report", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    code, text, _ = run(tiny, "--out", tmp_path / "out.html", "--resamples", 50, "--seed", 3)
    assert code == 0
    assert f"written to {tmp_path / 'out.html'}" in text
    assert "50 resamples, seed 3" in (tmp_path / "out.md").read_text(encoding="utf-8")
    code, _, error = run(tmp_path)
    assert code == 1
    assert "is not a study folder" in error
