"""Reports of studies in every state: unfinished, without evaluation, damaged; and the command."""

import json
import math
import re
import shutil
import sys

import pytest
import small_study
from report_files import Page, table
from small_study import LANGUAGES

from mlcalib.cli import main
from mlcalib.report import write_report


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    mixes = {name: small_study.MIXES[name] for name in ("en", "zh")}
    small_study.build(folder, mixes=mixes, budgets=())
    return folder


@pytest.fixture
def copy(study, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(study, tmp_path / "copy", ignore=shutil.ignore_patterns("report"))
    return tmp_path / "copy"


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    mixes, one = {"en": ["en"], "multi10": LANGUAGES}, {"gptq-w4-g64": "gptq"}
    small_study.build(folder, mixes=mixes, budgets=(), tasks=(), quantizers=one)
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
    (tiny / "smollm2" / "variants" / "gptq-w4-g64-en.json").unlink()
    (tiny / "smollm2" / "costs.json").unlink()
    page = write_report(tiny, resamples=50)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "1 of 4 have no evaluation: `gptq-w4-g64-en`" in text
    assert "1 of 3 have no checkpoint: `gptq-w4-g64-en`; costs.json: time and memory" in text
    assert "**gptq-w4-g64**: only `multi10` is measured in all languages" in text
    assert "gptq-w4-g64: layer losses are not measured." in text
    assert re.search(r"\| peak memory +\| +not measured \|", text)
    assert re.search(r"\| solving +\| +7.4 s \| +not measured \|", text)
    rows = table(page.parent / "tables" / "rises.csv")
    missing = [row for row in rows if row["measured"] == "False"]
    assert {row["variant"] for row in missing} == {"gptq-w4-g64-en"}
    assert len(missing) == 10


def test_layers_that_were_not_asked_for_are_not_missing(tiny):
    (tiny / "smollm2" / "layers.json").unlink()
    for asked in (True, False):
        study = json.loads((tiny / "study.json").read_text(encoding="utf-8"))
        (tiny / "study.json").write_text(json.dumps({**study, "layers": asked}), encoding="utf-8")
        text = write_report(tiny, resamples=50).with_suffix(".md").read_text(encoding="utf-8")
        assert ("layers.json" in text) == asked


def test_a_study_that_only_began(tiny):
    shutil.rmtree(tiny / "smollm2")
    text = write_report(tiny, resamples=50).with_suffix(".md").read_text(encoding="utf-8")
    assert "**gptq-w4-g64**: not measured in all languages yet." in text
    assert "4 of 4 have no evaluation" in text
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
    mixes, one = {"en": ["en"], "<b>لغة": ["en", "sw"]}, {"awq-w4-g64": "awq"}
    study = small_study.build(
        tmp_path, mixes=mixes, budgets=(), tasks=(), quantizers=one, documents=2
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
    assert "[no interval]" in text
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


def test_tasks_whose_items_are_not_right_or_wrong(copy):
    """ROUGE-L of each summary, one of which says nothing; and a cell that says why it is empty."""
    for path in sorted((copy / "smollm2" / "evaluations").iterdir()):
        content = json.loads(path.read_text())
        model = content["rows"][0] | {"task": "xlsum", "metric": "rouge_l", "language": "sw"}
        scores = [20.0 + at % 7 - (path.stem != "float") for at in range(60)]
        content["rows"].append(model | {"value": sum(scores) / 60, "n": 60})
        content["items"]["xlsum"] = {"sw": [*scores, None]}
        content["missing"] = [
            {"task": "xlsum", "language": "xh", "metric": None, "reason": "no task", "fillers": []}
        ]
        path.write_text(json.dumps(content))
    page = write_report(copy, resamples=200)
    rows = [row for row in table(page.parent / "tables" / "tasks.csv") if row["task"] == "xlsum"]
    assert {row["test"] for row in rows} == {"bootstrap"}
    assert all(float(row["change"]) == pytest.approx(-1) for row in rows)
    assert all(float(row["p_holm"]) < 0.05 for row in rows)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    shown = text[text.index("xlsum, rouge_l") :].split("\n\n")[1]
    assert "\u22121.00" in shown  # a point of ROUGE-L, which is no share
    assert "\u2212100.00" not in shown
    changes = table(page.parent / "tables" / "tasks_changes.csv")
    cells = {row["language"]: row for row in changes if row["task"] == "xlsum"}
    assert cells["xh"]["missing"] == "no task"
    assert cells["sw"]["change"].startswith("-")


def test_fidelity_of_a_study_is_shown(tiny):
    """Of a study without benchmark tasks, too: the multilingual setting moves least."""
    for path in sorted((tiny / "smollm2" / "evaluations").iterdir()):
        content = json.loads(path.read_text())
        content["rows"] = [row for row in content["rows"] if row["task"] == "perplexity"]
        content |= {"items": {}, "divergence": {}}
        far = 0.01 if path.stem.endswith("multi10") else 0.1
        measured = content["documents"].items() if path.stem != "float" else ()
        for code, documents in measured:
            tokens = documents["tokens"]
            content["divergence"][code] = [
                far * count * (1 + 0.1 * (at % 3)) for at, count in enumerate(tokens)
            ]
            kl = sum(content["divergence"][code]) / sum(tokens)
            row = content["rows"][0] | {"task": "fidelity", "metric": "kl", "language": code}
            content["rows"].append(row | {"value": kl, "n": sum(tokens)})
        path.write_text(json.dumps(content))
    text = write_report(tiny, resamples=100).with_suffix(".md").read_text(encoding="utf-8")
    part = text[text.index("## Fidelity") :]
    line = next(line for line in part.splitlines() if line.startswith("| Swahili"))
    far, english, near = (cell.split("±")[0].strip() for cell in line.split("|")[2:-1])
    assert far == english
    assert not far.startswith("**")  # boxed on the page
    assert float(near.removeprefix("**")) == pytest.approx(float(far) / 10)
    assert near.startswith("**")
    assert "## Tasks" not in text


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
