"""Data sets in small local copies with the layout of those on the hub."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from small_datasets import make_c4, make_wikipedia, sentences, write_card

import mlcalib
from mlcalib.corpora import Tally, open_corpus
from mlcalib.corpora import _documents as documents_module


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    return make_c4(tmp_path_factory.mktemp("c4"))


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory):
    return make_wikipedia(tmp_path_factory.mktemp("wikipedia"))


def read(corpus, language="sw", split="calib", seed=None):
    tally = Tally()
    return list(corpus.documents(language, split, seed).read(tally)), tally


def stripped(texts):
    return [text.strip() for text in texts]


@pytest.mark.parametrize("language", ["en", "sw", "he"])
def test_c4_has_a_configuration_for_each_language(c4, language):
    texts, tally = read(open_corpus(f"c4:{c4}"), language)
    assert texts == stripped(sentences(language, 0, 60))
    assert (tally.read, dict(tally.dropped)) == (63, {"blank documents": 3})
    held_out, _ = read(open_corpus(f"c4:{c4}"), language, "eval")
    assert held_out == stripped(sentences(language, 1000, 8))


def test_the_seed_orders_files_and_documents(c4):
    corpus = open_corpus(f"c4:{c4}")
    plain, first, again, other = (read(corpus, seed=seed)[0] for seed in (None, 0, 0, 1))
    assert first == again
    assert sorted(plain) == sorted(first) == sorted(other)
    assert len({tuple(texts) for texts in (plain, first, other)}) == 3


def test_wikipedia_articles_are_for_one_split_alone(wikipedia):
    corpus = open_corpus(f"wikipedia:{wikipedia}")
    calib, counted = read(corpus, seed=0)
    held_out, _ = read(corpus, split="eval")
    assert sorted([*calib, *held_out]) == sorted(stripped(sentences("sw", 0, 100)))
    assert 3 <= len(held_out) <= 20
    assert counted.dropped == {"documents of the other split": len(held_out)}


def test_no_more_is_read_than_the_window_and_the_use(wikipedia, monkeypatch):
    monkeypatch.setattr(documents_module, "WINDOW", 5)
    tally = Tally()
    stream = open_corpus(f"wikipedia:{wikipedia}").documents("sw", "calib", 0).read(tally)
    first = [next(stream) for _ in range(20)]
    assert 25 <= tally.read < 40
    numbers = [int(text.split()[2]) // 10 for text in first]
    assert len(set(numbers)) >= 2  # row groups are not read in the order of the file
    assert numbers != sorted(numbers)


def test_a_budget_is_filled_and_the_origin_recorded(c4, tokenizer):
    calibration = mlcalib.calibration(tokenizer, "en,sw", f"c4:{c4}", tokens=400, seq_len=32)
    assert calibration.tokens == {"en": 200, "sw": 200}
    record = json.loads(json.dumps(calibration.describe()))["languages"]["sw"]
    assert record["origin"] == {
        "dataset": str(c4),
        "commit": None,
        "config": "sw",
        "split": "train",
        "shared_with_other_split": False,
    }
    assert record["dropped"] == {"blank documents": 3}
    assert "sw: left out of 63 read: 3 blank documents" in calibration.table()
    again = mlcalib.calibration(tokenizer, "sw", f"c4:{c4}", tokens=100, seq_len=32)
    assert again.ids["sw"].tolist() == calibration.ids["sw"][:4].tolist()


def test_all_is_read_of_one_commit(c4, monkeypatch):
    import datasets
    import huggingface_hub

    load, names = datasets.load_dataset, datasets.get_dataset_config_names
    asked = []

    def info(self, name, revision=None):
        asked.append((name, revision))
        return SimpleNamespace(sha="c0ffee")

    def local(call):
        def called(name, *args, revision, **options):
            assert (name, revision) == ("allenai/c4", "c0ffee")
            return call(str(c4), *args, **options)

        return called

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", local(load))
    monkeypatch.setattr(datasets, "get_dataset_config_names", local(names))
    corpus = open_corpus("c4?revision=main")
    for language in ("en", "sw"):
        assert corpus.documents(language, "calib").origin["commit"] == "c0ffee"
    assert asked == [("allenai/c4", "main")]


@pytest.mark.parametrize(
    ("configs", "options", "found"),
    [
        (["sw", "swh_Latn"], "", "sw"),
        (["eng_Latn", "swh_Latn"], "", "swh_Latn"),
        (["2023.sw", "2024.sw"], "?config=2024.{}", "2024.sw"),
        (["default"], "?config=default", "default"),
        (["wiki-swh_Latn"], "?config=wiki-{}", "wiki-swh_Latn"),
    ],
)
def test_the_configuration_of_a_language(tmp_path, configs, options, found):
    (tmp_path / "data.jsonl").write_text('{"text": "moja"}\n')
    write_card(tmp_path, {name: {"train": "data.jsonl"} for name in configs})
    corpus = open_corpus(f"hub:{tmp_path}{options}")
    assert corpus.documents("sw", "calib").origin["config"] == found


@pytest.mark.parametrize(
    ("spec", "language", "error", "message"),
    [
        ("hub:{}", "xh", FileNotFoundError, r"no text in 'xh' .*called xh or xho_Latn\).*2024\.sw"),
        (
            "hub:{}",
            "sw",
            ValueError,
            r"several .*: 2023\.sw, 2024\.sw; .*2024\.\{\}",
        ),
        ("hub:{}?config=b", "sw", FileNotFoundError, r"no configuration called b\)"),
        ("hub:{}?config=2024.{{}}&calib=dev", "sw", FileNotFoundError, r"no split 'dev'; .* train"),
        ("hub:{}?revision=main", "sw", ValueError, "is a folder, which has no revision"),
        ("c4:{}", "code", FileNotFoundError, "no text in 'code'"),
        ("hub", "sw", ValueError, "write 'hub:OWNER/NAME'"),
        ("hub:/nowhere", "sw", FileNotFoundError, "'/nowhere' does not exist"),
        ("hub:{}?split=x", "sw", ValueError, "Unknown option of the corpus 'hub' 'split'"),
    ],
)
def test_refusals(tmp_path, spec, language, error, message):
    (tmp_path / "data.jsonl").write_text('{"text": "moja"}\n')
    write_card(tmp_path, {name: {"train": "data.jsonl"} for name in ("2023.sw", "2024.sw")})
    with pytest.raises(error, match=message):
        open_corpus(spec.format(tmp_path)).documents(language, "calib")


def test_splits_and_columns_by_option(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "moja"}\n{"body": null}\n')
    (tmp_path / "b.jsonl").write_text('{"body": "mbili"}\n')
    write_card(tmp_path, {"sw": {"train_sft": "a.jsonl", "test_sft": "b.jsonl"}})
    corpus = open_corpus(f"hub:{tmp_path}?calib=train_sft&eval=test_sft&field=body")
    assert read(corpus) == (["moja"], Tally(2, {"documents without body": 1}))
    assert read(corpus, split="eval")[0] == ["mbili"]
    with pytest.raises(ValueError, match=r"sw has no field 'text'; it has: body .*\?field=NAME"):
        read(open_corpus(f"hub:{tmp_path}?calib=train_sft"))


def test_a_package_that_is_missing_is_named():
    code = (
        "import sys; sys.modules['datasets'] = None; from mlcalib.corpora import open_corpus\n"
        "open_corpus('c4').documents('en', 'calib')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs datasets, which is not installed; run: pip install datasets" in done.stderr


def test_without_a_network_the_cache_is_read(c4, tmp_path, monkeypatch, caplog):
    """HF_HUB_OFFLINE is set in all tests."""
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    copy = tmp_path / "datasets--me--text"
    shutil.copytree(c4, copy / "snapshots" / commit)
    (copy / "refs").mkdir()
    (copy / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    corpus = open_corpus("hub:me/text")
    assert read(corpus) == read(open_corpus(f"hub:{c4}"))
    assert corpus.documents("sw", "calib").origin["commit"] == commit
    assert corpus.documents("sw", "calib").origin["dataset"] == "me/text"
    assert "is read from its cache" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"files:PATH.*hf download --repo-type dataset"):
        read(open_corpus("hub:me/other"))
