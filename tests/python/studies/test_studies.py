"""One pass for all variants: the same checkpoints as separate runs, whatever interrupts it."""

import filecmp
import json
from pathlib import Path

import pytest
from small_html import Shown
from small_models import tiny_llama
from small_tasks import write_all
from small_text import write_texts

import mlcalib
from mlcalib.evaluation import scorer as scoring
from mlcalib.judging import pair, read_generations
from mlcalib.quantization.block_files import BlockFiles
from mlcalib.studies import read_study, settings_of, variants_of


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("text"), ["en", "fr", "sw"])


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama(vocabulary=384, layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spec(model, text):
    return {
        "name": "test",
        "models": [str(model)],
        "corpus": f"files:{text}",
        "tokens": 300,
        "seq_len": 32,
        "settings": [
            "en",
            {"languages": "en,sw,fr", "tokens": [150, 300]},
            {"languages": "en:0.7,sw:0.3", "tokens_per_language": 100, "name": "mixed"},
        ],
        "quantizers": [
            {"method": "gptq", "bits": [4, 8], "group_size": 32},
            {"method": "awq", "group_size": 32},
            {"method": "rtn", "group_size": 32},
        ],
        "evaluation": {"languages": "en,sw", "tokens": 100},
        "layers": {"languages": "en,fr", "tokens": 64},
    }


def run(spec, out, **options):
    return mlcalib.study(spec, out, progress=False, echo=lambda _: None, **options)


def weights_equal(a, b):
    names = ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"]
    return all(filecmp.cmp(a / name, b / name, shallow=False) for name in names)


def test_settings_and_variants_are_the_product(spec):
    found = read_study(spec)
    assert list(settings_of(found)) == ["en", "en+sw+fr-150", "en+sw+fr-300", "mixed"]
    names = list(variants_of(found))
    assert len(names) == len(set(names)) == 3 * 4 + 1
    assert names[0] == "gptq-w4-g32-en"
    assert names[-1] == "rtn-w4-g32"


def test_quantizers_as_objects(spec):
    spec["quantizers"] = [mlcalib.GPTQ(group_size=32, damp=0.02), mlcalib.RTN(), "awq"]
    found = variants_of(read_study(spec))
    spec["quantizers"] = [{"method": "gptq", "group_size": 32, "damp": 0.02}, "rtn", "awq"]
    assert found == variants_of(read_study(spec))
    assert "gptq-w4-g32-damp_0.02-en" in found


def test_a_plan_shows_itself(spec, tmp_path, model):
    told = []
    plans = mlcalib.study(spec, tmp_path, plan_only=True, progress=False, echo=told.append).plans
    assert told[-1] == plans[0].table()
    assert repr(plans).startswith(f"Plan of model {model} (tiny): 13 checkpoints to make, 0 done\n")
    shown = Shown(plans._repr_html_())
    assert shown.tables[0][1] == ["gptq-w4-g32-en", "to do", "300 tokens of en"]
    assert shown.tables[0][-1] == ["rtn-w4-g32", "to do", "no text"]
    assert len(shown.tables[0]) == 1 + 13


def test_equals_separate_runs(spec, model, text, tmp_path):
    run(spec, tmp_path / "study")
    checkpoints = tmp_path / "study" / "tiny" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == set(variants_of(read_study(spec)))
    for name, variant in variants_of(read_study(spec)).items():
        calibration = None
        if variant.setting is not None:
            setting = settings_of(read_study(spec))[variant.setting]
            calibration = mlcalib.calibration(
                model,
                setting.languages,
                spec["corpus"],
                tokens=setting.tokens,
                tokens_per_language=setting.tokens_per_language,
                seq_len=32,
            )
        mlcalib.quantize_checkpoint(
            model,
            tmp_path / name,
            calibration,
            method=variant.method,
            propagate="float",
            progress=False,
            **variant.options,
        )
        assert weights_equal(tmp_path / name, checkpoints / name), name
        if calibration is not None:
            record = json.loads((checkpoints / name / "mlcalib.json").read_text())
            assert record["calibration"] == json.loads(json.dumps(calibration.describe()))


def test_the_layout(spec, tmp_path):
    run(spec, tmp_path)
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["settings"]["mixed"]["weights"] == pytest.approx({"en": 1.4, "sw": 0.6})
    folder = tmp_path / "tiny"
    layers = json.loads((folder / "layers.json").read_text())
    linear = "model.layers.1.mlp.down_proj"
    assert set(layers["power"][linear]) == {"en", "fr"}
    assert set(layers["ranges"][linear]) == {"en", "fr", "sw"}
    outside = layers["outside"]
    assert set(outside) == set(study["settings"])
    # A longer prefix of the same mixture spans no less.
    for code, found in outside["en+sw+fr-300"][linear].items():
        assert found["share"] <= outside["en+sw+fr-150"][linear][code]["share"]
    assert outside["en"][linear]["fr"]["share"] > 0
    record = json.loads((folder / "variants" / "gptq-w4-g32-mixed.json").read_text())
    assert set(record["losses"][linear]) == {"en", "fr", "sw"}
    assert set(record["heldout"][linear]) == {"en", "fr"}
    assert record["bytes"] > 0
    found = json.loads((folder / "evaluations" / "rtn-w4-g32.json").read_text())
    assert {row["language"] for row in found["rows"]} == {"en", "sw"}
    for code in ("en", "sw"):
        documents = found["documents"][code]
        loss = next(
            row["value"]
            for row in found["rows"]
            if row["language"] == code and row["metric"] == "token_loss"
        )
        assert sum(documents["loss"]) / sum(documents["tokens"]) == pytest.approx(loss)
    costs = json.loads((folder / "costs.json").read_text())
    assert costs["separate_tokens"] > costs["tokens"] > 0
    assert costs["seconds"]["forward"] > 0


def test_held_out_losses_are_those_of_the_weights(spec, model, tmp_path):
    """An independent way: the float model's activations times the change of the weight."""

    from mlcalib.evaluation import layer_losses

    spec["quantizers"] = [{"method": "gptq", "group_size": 32}]
    spec["settings"] = ["en"]
    run(spec, tmp_path)
    calibration = mlcalib.calibration(model, "en", spec["corpus"], tokens=300, seq_len=32)
    quantized = mlcalib.quantize(
        model, calibration, propagate="float", group_size=32, progress=False
    )
    (wanted,) = layer_losses(
        model, [quantized], "en,fr", spec["corpus"], tokens=64, seq_len=32, progress=False
    )
    found = json.loads((tmp_path / "tiny" / "variants" / "gptq-w4-g32-en.json").read_text())
    for name, losses in wanted.items():
        assert found["heldout"][name] == pytest.approx(losses, rel=1e-5)


class Killed(Exception):  # noqa: N818 - not an error of ours
    """Stands for kill -9."""


@pytest.mark.parametrize("hidden", ["memory", "disk"])
@pytest.mark.parametrize("after", [1, 14, 30])
def test_goes_on_where_it_stopped(spec, tmp_path, monkeypatch, after, hidden):
    spec["evaluation"] = None
    run(spec, tmp_path / "a")
    spec["hidden_states"] = hidden
    write, count = BlockFiles.write, []

    def failing(self, *args):
        count.append(1)
        if len(count) == after + 1:
            raise Killed
        write(self, *args)

    monkeypatch.setattr(BlockFiles, "write", failing)
    with pytest.raises(Killed):
        run(spec, tmp_path / "b")
    run(spec, tmp_path / "b")
    assert len(count) == 13 * 3 + 1  # no block of any variant was solved twice
    for path in (tmp_path / "a" / "tiny" / "checkpoints").iterdir():
        assert weights_equal(path, tmp_path / "b" / "tiny" / "checkpoints" / path.name)
    layers = "tiny/layers.json"
    assert filecmp.cmp(tmp_path / "a" / layers, tmp_path / "b" / layers, shallow=False)
    assert not (tmp_path / "b" / "tiny" / "hidden").exists()


def test_what_is_done_is_not_done_again(spec, tmp_path, monkeypatch):
    run(spec, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    evaluated = tmp_path / "tiny" / "evaluations"
    times = {path: path.stat().st_mtime_ns for path in evaluated.iterdir()}
    (planned,) = run(spec, tmp_path, plan_only=True).plans
    assert planned.todo == []
    spec["quantizers"].append({"method": "rtn", "group_size": 64})
    (planned,) = run(spec, tmp_path).plans
    assert planned.todo == ["rtn-w4-g64"]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (evaluated / "rtn-w4-g64.json").is_file()


def test_changed_inputs_are_named(spec, tmp_path):
    run(spec, tmp_path)
    spec["seed"] = 1
    with pytest.raises(ValueError, match=r"gptq-w4-g32-en was begun .*calibration\.sha256 was"):
        run(spec, tmp_path)


def test_quantized_propagation_has_passes_of_its_own(spec, model, tmp_path):
    spec |= {"settings": ["en"], "evaluation": None, "layers": None}
    spec["quantizers"] = [{"method": "gptq", "group_size": 32, "propagate": ["float", "quantized"]}]
    run(spec, tmp_path / "study")
    calibration = mlcalib.calibration(model, "en", spec["corpus"], tokens=300, seq_len=32)
    mlcalib.quantize_checkpoint(model, tmp_path / "one", calibration, group_size=32, progress=False)
    checkpoints = tmp_path / "study" / "tiny" / "checkpoints"
    assert weights_equal(tmp_path / "one", checkpoints / "gptq-w4-g32-quantized-en")
    assert not weights_equal(tmp_path / "one", checkpoints / "gptq-w4-g32-en")


def test_a_context_or_tokens_that_a_later_model_lacks_are_told_first(spec, tokenizer, tmp_path):
    small = tiny_llama(vocabulary=100)
    tokenizer.save_pretrained(tmp_path / "small")
    study = spec | {"models": [*spec["models"], str(tmp_path / "small")]}
    for length, wrong in ((16, "context of 16 tokens.*seq_len=16"), (64, "has the token .* 100 ")):
        small.config.max_position_embeddings = length
        small.save_pretrained(tmp_path / "small")
        with pytest.raises(ValueError, match=wrong):
            run(study, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": ["en", "en"]}, "Two settings are called 'en'"),
        ({"settings": []}, "no settings, which gptq needs"),
        ({"settings": ["xx"]}, "Unknown"),
        ({"settings": [{"languages": "en", "tokens": 5, "tokens_per_language": 5}]}, "give one"),
        ({"quantizers": ["gpt"]}, "Did you mean 'gptq'"),
        ({"quantizers": [{"method": "gptq", "bit": 4}]}, "bit"),
        ({"quantizers": ["rtn", "rtn"]}, "Two variants are called 'rtn-w4-g128'"),
        ({"model": ["x"]}, "model"),
        ({"models": []}, "models"),
        ({"tokens": 10**6}, "Too little text"),
    ],
)
def test_impossible_studies(spec, tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(spec | change, tmp_path)
    assert not list(tmp_path.iterdir())


def test_presets_are_the_papers_grid():
    paper = read_study("paper")
    names = ["en", "fr", "sw", "zh", "xh", "multi", "multi10", "multimix"]
    assert list(settings_of(paper)) == names
    assert len(variants_of(paper)) == 16
    assert [model.split("/")[1] for model in paper.models] == ["Llama-3.1-8B", "Qwen2.5-7B"]
    assert {v.options["group_size"] for v in variants_of(paper).values()} == {128}
    assert paper.evaluation.tasks == ("perplexity", "xnli", "xstorycloze", "global_mmlu")
    assert paper.evaluation.languages == "multi10"
    assert not paper.evaluation.fidelity  # which the paper does not measure
    small = read_study("paper-small")
    assert list(settings_of(small)) == names
    assert small.evaluation.tokens == 2048
    with pytest.raises(ValueError, match="Did you mean 'paper'"):
        read_study("papers")


def test_yaml_files(spec, tmp_path):
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    assert read_study(path) == read_study(spec)
    path.write_text("- en")
    with pytest.raises(ValueError, match="holds a YAML list"):
        read_study(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_study(path)


def test_languages_in_turns_give_the_same_study(spec, tmp_path, caplog):
    spec["evaluation"] = None
    spec["quantizers"] = [{"method": "gptq", "group_size": 32}, {"method": "rtn", "group_size": 32}]
    for name, memory in (("a", None), ("b", 1e-6)):
        run(spec | {"memory": memory}, tmp_path / name)
    assert "of 3 languages are held at a time, in 3 turns" in caplog.text
    a, b = (tmp_path / name / "tiny" for name in "ab")
    for folder in (a / "checkpoints").iterdir():
        other = b / "checkpoints" / folder.name / "model.safetensors"
        assert filecmp.cmp(folder / "model.safetensors", other, shallow=False)
    assert (a / "layers.json").read_bytes() == (b / "layers.json").read_bytes()
    for file in (a / "variants").iterdir():
        one, other = (json.loads((each / "variants" / file.name).read_text()) for each in (a, b))
        assert one["losses"] == other["losses"]
        assert one["heldout"] == other["heldout"]


def test_plan_says_what_it_takes(spec, tmp_path, capsys):
    (planned,) = mlcalib.study(spec, tmp_path, plan_only=True).plans
    printed = capsys.readouterr().out
    assert "13 checkpoints to make" in printed
    assert "gptq-w4-g32-mixed" in printed
    assert planned.separate == 3 * (300 + 150 + 300 + 200)
    assert planned.tokens == 300 + 100 + 100
    assert planned.memory == planned.passes.total > 0
    assert "statistics of fr" in printed
    assert "other text that is measured" in printed
    assert planned.disk > 0
    assert not list(tmp_path.iterdir())


def test_without_text_the_layers_go_on_too(spec, tmp_path, monkeypatch):
    spec |= {"quantizers": [{"method": "rtn", "group_size": 32}], "settings": []}
    run(spec, tmp_path / "a")
    write, count = BlockFiles.write, []

    def failing(self, *args):
        count.append(1)
        if len(count) == 2:
            raise Killed
        write(self, *args)

    monkeypatch.setattr(BlockFiles, "write", failing)
    with pytest.raises(Killed):
        run(spec, tmp_path / "b")
    run(spec, tmp_path / "b")
    layers = "tiny/layers.json"
    assert filecmp.cmp(tmp_path / "a" / layers, tmp_path / "b" / layers, shallow=False)
    for variant in ("a", "b"):
        record = tmp_path / variant / "tiny" / "variants" / "rtn-w4-g32.json"
        assert set(json.loads(record.read_text())["heldout"]["model.layers.2.mlp.up_proj"]) == {
            "en",
            "fr",
        }


@pytest.mark.parametrize("hidden", ["memory", "disk"])
def test_a_variant_that_is_added_measures_the_same(spec, tmp_path, hidden):
    spec["hidden_states"] = hidden
    run(spec, tmp_path / "a")
    some = spec | {"quantizers": spec["quantizers"][:1]}
    run(some, tmp_path / "b")
    run(spec, tmp_path / "b")
    for kind in ("variants", "evaluations"):
        for path in (tmp_path / "a" / "tiny" / kind).iterdir():
            first, second = (
                json.loads((tmp_path / each / "tiny" / kind / path.name).read_text())
                for each in ("a", "b")
            )
            for key in ("heldout", "losses", "documents"):
                assert first.get(key) == second.get(key)


def test_benchmark_tasks_are_evaluated_too(spec, tmp_path):
    rows = [
        {"premise": f"{word} opens", "hypothesis": f"{word} closes", "label": index % 3}
        for index, word in enumerate(["market", "road", "buyer", "sunrise"])
    ]
    (tmp_path / "data" / "xnli" / "en").mkdir(parents=True)
    for split in ("validation", "test"):
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "data" / "xnli" / "en" / f"{split}.jsonl").write_text(text)
    spec["quantizers"] = [{"method": "rtn", "group_size": 32}]
    spec["evaluation"] = {
        "tasks": ["perplexity", "xnli"],
        "languages": "en,st",
        "tokens": 64,
        "corpus": "sample",
        "data": str(tmp_path / "data"),
    }
    spec["layers"] = None
    spec["allow_short"] = True
    run(spec, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "tiny" / "evaluations" / "rtn-w4-g32.json").read_text())
    assert {row["task"] for row in found["rows"]} == {"perplexity", "xnli"}
    assert len(found["items"]["xnli"]["en"]) == 4
    assert {(each["task"], each["language"]) for each in found["missing"]} == {("xnli", "st")}


def test_llm_int8_is_evaluated_beside_the_float_model(spec, tmp_path):
    spec |= {"settings": ["en"], "layers": None}
    spec["quantizers"] = [
        {"method": "rtn", "bits": 8, "group_size": -1, "symmetric": True},
        {"method": "llm_int8", "threshold": 2.0, "name": "llm_int8"},
    ]
    spec["evaluation"] |= {"fidelity": True}
    study = run(spec, tmp_path / "out")
    folder = tmp_path / "out" / "tiny" / "evaluations"
    found = json.loads((folder / "llm_int8.json").read_text())
    rows = {(row["task"], row["language"], row["metric"]): row for row in found["rows"]}
    assert 0 < rows["llm_int8", "en", "outlier_share"]["value"] < 1
    assert rows["fidelity", "sw", "kl"]["value"] > 0
    assert rows["perplexity", "en", "perplexity"]["method"] == "llm_int8"
    assert any(row.method == "llm_int8" for row in study.results)
    page = study.report(tmp_path / "page.html").read_text()
    assert "llm_int8" in page
    assert "have no checkpoint" not in page
    before = (folder / "rtn-w8-channel-sym.json").stat().st_mtime_ns
    spec["quantizers"][1]["threshold"] = 3.0
    run(spec, tmp_path / "out")
    again = json.loads((folder / "llm_int8.json").read_text())
    assert again["inputs"]["checkpoint"] == {"llm_int8": 3.0}
    assert (folder / "rtn-w8-channel-sym.json").stat().st_mtime_ns == before


def test_a_task_without_data_is_told_before_anything_is_quantized(spec, tmp_path):
    pytest.importorskip("lm_eval")
    spec["evaluation"] |= {"tasks": ["perplexity", "global_mmlu"], "data": str(tmp_path)}
    with pytest.raises(FileNotFoundError, match="task 'global_mmlu', language 'en'"):
        run(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_kinds_of_tasks_with_their_items_and_generations(spec, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from mlcalib.evaluation.tasks import kept
    from mlcalib.evaluation.tasks.model import TaskModel

    monkeypatch.setattr(
        TaskModel, "generate_until", lambda _, requests, **__: ["Soko."] * len(requests)
    )
    ran, inner = [], kept.run_tasks

    def counting(model, tokenizer, tasks, languages, **options):
        ran.append((*tasks, *languages))
        return inner(model, tokenizer, tasks, languages, **options)

    monkeypatch.setattr(kept, "run_tasks", counting)
    spec |= {"settings": [], "layers": None, "quantizers": [{"method": "rtn", "group_size": 32}]}
    spec["evaluation"] = {
        "tasks": ["xcopa", "global_mmlu", "flores"],
        "languages": "sw",
        "data": str(write_all(tmp_path / "data")),
        "limit": 1,
    }
    run(spec, tmp_path / "out")
    found = evaluations(tmp_path / "out")
    for each in found.values():
        assert {task: len(by["sw"]) for task, by in each["items"].items()} == {
            "xcopa": 1, "global_mmlu": 2, "flores_from_en": 1, "flores_to_en": 1,
        }  # fmt: skip
        assert each["documents"] == {}
    generations = tmp_path / "out" / "tiny" / "generations"
    both = [read_generations(generations / name / "flores_to_en.jsonl") for name in found]
    assert len(pair(*both)) == 1
    assert len(ran) == 2 * 3
    spec["evaluation"]["tasks"].append("xnli")
    run(spec, tmp_path / "out")
    assert ran[6:] == [("xnli", "sw")] * 2


def evaluations(folder):
    files = (folder / "tiny" / "evaluations").iterdir()
    return {path.stem: json.loads(path.read_text()) for path in files}


@pytest.fixture
def forwards(monkeypatch):
    """The names of the models of which a text was scored."""
    found = []

    def counting(score):
        def outer(model, *args, **kwargs):
            found.append(Path(model.config.name_or_path).name)
            return score(model, *args, **kwargs)

        return outer

    for name in ("score", "recorded_score"):
        monkeypatch.setattr(scoring, name, counting(getattr(scoring, name)))
    return found


def test_fidelity_is_that_of_evaluate(spec, model, text, tmp_path, forwards):
    spec |= {"settings": ["sw"], "layers": None}
    spec["quantizers"] = [
        {"method": "gptq", "group_size": 32},
        {"method": "rtn", "bits": [4, 8], "group_size": 32},
    ]
    spec["evaluation"]["fidelity"] = True
    run(spec, tmp_path)
    found = evaluations(tmp_path)
    names = list(found)
    assert len(forwards) == 4 * 2  # each model, each language, once
    assert not (tmp_path / "tiny" / "scores" / "states").exists()
    assert {row["task"] for row in found["float"]["rows"]} == {"perplexity"}
    folders = [tmp_path / "tiny" / "checkpoints" / name for name in names if name != "float"]
    rows = mlcalib.evaluate(
        [model, *folders], "en,sw", f"files:{text}", tokens=100, seq_len=32, fidelity=True,
        dtype="float32", progress=False,
    )  # fmt: skip
    for folder in folders:
        measured = {
            (row.task, row.language, row.metric): (row.value, row.stderr, row.n)
            for row in rows
            if row.model == str(folder)
        }
        assert measured == {
            (row["task"], row["language"], row["metric"]): (row["value"], row["stderr"], row["n"])
            for row in found[folder.name]["rows"]
        }
        assert {task for task, *_ in measured} == {"perplexity", "fidelity"}
        assert {row["model"] for row in found[folder.name]["rows"]} == {str(model)}


def test_fidelity_that_was_killed_goes_on(spec, tmp_path, monkeypatch, forwards):
    spec |= {"settings": [], "layers": None}
    spec["quantizers"] = [{"method": "rtn", "bits": [4, 8], "group_size": 32}]
    spec["evaluation"]["fidelity"] = True
    run(spec, tmp_path / "a")
    forwards.clear()
    score = scoring.score

    def failing(*args, **kwargs):
        if len(forwards) == 3:
            raise Killed
        return score(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score", failing)
        with pytest.raises(Killed):
            run(spec, tmp_path / "b")
    (planned,) = run(spec, tmp_path / "b", plan_only=True).plans
    assert (tmp_path / "b" / "tiny" / "scores" / "states").is_dir()
    run(spec, tmp_path / "b")
    assert len(forwards) == 6
    same = ("rows", "documents")
    first, second = (
        {name: [each[key] for key in same] for name, each in evaluations(tmp_path / out).items()}
        for out in ("a", "b")
    )
    assert first == second
    # The float model's hidden states: two languages of 4 windows of 32 tokens.
    (done,) = run(spec, tmp_path / "b", plan_only=True).plans
    assert planned.disk - done.disk == 2 * 4 * 32 * 64 * 4
    assert not (tmp_path / "b" / "tiny" / "scores" / "states").exists()


def test_what_is_added_costs_what_is_new(spec, tmp_path, forwards):
    spec |= {"settings": [], "layers": None}
    spec["quantizers"] = [{"method": "rtn", "bits": [4, 8], "group_size": 32}]
    spec["evaluation"] |= {"languages": "en"}
    run(spec, tmp_path)
    assert len(forwards) == 3
    forwards.clear()
    spec["evaluation"]["languages"] = "en,sw"
    run(spec, tmp_path)
    assert len(forwards) == 3  # Swahili
    forwards.clear()
    spec["evaluation"]["fidelity"] = True
    run(spec, tmp_path)
    assert len(forwards) == 6
    forwards.clear()
    spec["quantizers"].append({"method": "rtn", "group_size": 64})
    run(spec, tmp_path)
    assert forwards == ["tiny", "tiny", "rtn-w4-g64", "rtn-w4-g64"]
    forwards.clear()
    spec["evaluation"]["languages"] = "en,sw,fr"
    run(spec, tmp_path)
    assert forwards == ["tiny", "rtn-w4-g32", "rtn-w8-g32", "rtn-w4-g64"]


def test_fidelity_needs_perplexity(spec, tmp_path):
    spec["evaluation"] = {"tasks": ["xnli"], "fidelity": True}
    with pytest.raises(ValueError, match="the tasks are xnli; add perplexity"):
        run(spec, tmp_path)


def test_an_unknown_task_is_named(spec, tmp_path):
    spec["evaluation"] = {"tasks": ["xnly"]}
    with pytest.raises(ValueError, match="Did you mean 'xnli'"):
        run(spec, tmp_path)


def test_layers_are_measured_anew_on_other_text(spec, tmp_path):
    run(spec, tmp_path)
    before = json.loads((tmp_path / "tiny" / "layers.json").read_text())
    spec["layers"] = {"languages": "en,sw", "tokens": 64}
    run(spec, tmp_path)
    after = json.loads((tmp_path / "tiny" / "layers.json").read_text())
    linear = "model.layers.1.mlp.down_proj"
    assert after["ranges"] == before["ranges"]
    assert set(after["power"][linear]) == {"en", "sw"}
    assert after["power"][linear]["en"] == before["power"][linear]["en"]


def test_killed_between_a_checkpoint_and_its_losses(spec, tmp_path, monkeypatch):
    from mlcalib.studies import run as engine

    spec |= {"settings": ["en"], "quantizers": [{"method": "gptq", "group_size": 32}]}
    run(spec, tmp_path / "a")
    write = engine._write

    def failing(path, content):
        if path.parent.name == "variants":
            raise Killed
        write(path, content)

    monkeypatch.setattr(engine, "_write", failing)
    with pytest.raises(Killed):
        run(spec, tmp_path / "b")
    monkeypatch.undo()
    run(spec, tmp_path / "b")
    record = "tiny/variants/gptq-w4-g32-en.json"
    first, second = (json.loads((tmp_path / each / record).read_text()) for each in ("a", "b"))
    for key in ("losses", "heldout", "bytes", "warnings"):
        assert first[key] == second[key]
    checkpoint = "tiny/checkpoints/gptq-w4-g32-en"
    assert weights_equal(tmp_path / "a" / checkpoint, tmp_path / "b" / checkpoint)


def test_short_text_is_used_where_the_study_says_so(spec, tmp_path):
    spec |= {"settings": [], "quantizers": [{"method": "rtn", "group_size": 32}]}
    spec |= {"layers": {"languages": "en", "tokens": 100_000}, "evaluation": None}
    with pytest.raises(ValueError, match=r"100,?000"):
        run(spec, tmp_path / "refused")
    run(spec, tmp_path / "short", allow_short=True)
    assert json.loads((tmp_path / "short/tiny/layers.json").read_text())["power"]


def test_gguf_files_have_a_size(spec, tmp_path):
    quantizer = {"method": "rtn", "group_size": 32, "symmetric": True}
    spec |= {"settings": [], "quantizers": [quantizer], "format": "gguf"}
    spec |= {"layers": None, "evaluation": None}
    run(spec, tmp_path)
    (record,) = (tmp_path / "tiny/variants").iterdir()
    (file,) = tmp_path.rglob("*.gguf")
    assert json.loads(record.read_text())["bytes"] == file.stat().st_size
