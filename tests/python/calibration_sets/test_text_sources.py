"""Every kind of source in several languages: asked against got, and what the record says.

``pytest tests/python/calibration_sets/test_text_sources.py -s`` shows the tables.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_datasets import make_c4, make_wikipedia, sentences
from small_models import tiny_llama
from small_tokenizer import make_tokenizer
from small_translators import make_madlad
from typer.testing import CliRunner

import mlcalib
from mlcalib.cli import app

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


def write_files(root, kind):
    for language in ("en", "sw"):
        texts = [*sentences(language, 0, 40), " "]
        chats = [[{"role": "user", "content": text}] for text in texts]
        (root / language).mkdir(parents=True)
        file = root / language / f"calib.{kind if kind != 'chat' else 'jsonl'}"
        if kind == "txt":
            file.write_text("\n".join(texts) + "\n")
        elif kind == "parquet":
            pq.write_table(pa.table({"text": texts}), file)
        else:
            rows = [{"messages": c} if kind == "chat" else {"text": c[0]["content"]} for c in chats]
            file.write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    files = {kind: write_files(root / kind, kind) for kind in ("txt", "jsonl", "parquet", "chat")}
    c4 = make_c4(root / "c4")
    return {
        "sample": "sample",
        **{kind: f"files:{folder}" for kind, folder in files.items()},
        "c4": f"c4:{c4}",
        "wikipedia": f"wikipedia:{make_wikipedia(root / 'wikipedia')}",
        "hub": f"hub:{c4}",
        "translated": f"translated:{make_madlad(root / 'madlad')}?source=en&corpus=c4:{c4}",
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(vocabulary=384).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


DROPPED = {  # of Swahili
    "sample": {},
    "txt": {"blank documents": 1},
    "jsonl": {"blank documents": 1},
    "parquet": {"blank documents": 1},
    "chat": {"blank documents": 1},
    "c4": {"blank documents": 3},
    "wikipedia": {"documents of the other split": None},
    "hub": {"blank documents": 3},
    "translated": {
        "blank documents": 3,
        "translated sentences cut off at their greatest length": None,
    },
}


@pytest.mark.parametrize("kind", DROPPED)
def test_asked_and_got(specs, model, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("MLCALIB_CACHE", str(tmp_path / "cache"))

    def make(**options):
        return mlcalib.calibration(
            model,
            "en:0.6,sw:0.4",
            specs[kind],
            seq_len=32,
            chat_template=kind == "chat",
            **options,
        )

    calibration = make(tokens=500)
    print(f"\n{specs[kind]}\n{calibration.table()}")
    assert calibration.tokens == {"en": 300, "sw": 200}
    swahili = calibration.report["sw"]
    assert swahili.read >= swahili.documents >= 1
    assert swahili.dropped.keys() == DROPPED[kind].keys()
    for what, count in DROPPED[kind].items():
        assert count in (None, swahili.dropped[what])
        assert f"{swahili.dropped[what]} {what}" in calibration.table()
    assert make(tokens=500).fingerprint == calibration.fingerprint
    assert make(tokens=500, seed=1).fingerprint != calibration.fingerprint
    assert make(tokens=200).ids["sw"].tolist() == calibration.ids["sw"][:3].tolist()
    with pytest.raises(ValueError, match=r"Too little text in '(en|sw)'.* are available .*missing"):
        make(tokens=50_000)


@pytest.mark.parametrize("kind", ["c4", "chat", "parquet"])
def test_command_line(specs, model, kind, tmp_path):
    out = tmp_path / "out"
    command = ["quantize", str(model), "--out", str(out), "--group-size", "32", "--seq-len", "32"]
    command += ["--languages", "en,sw", "--corpus", specs[kind], "--tokens", "200"]
    done = CliRunner().invoke(app, command + ["--chat-template"] * (kind == "chat"))
    assert done.exit_code == 0, done.output
    assert "sw: left out of" in done.output
    record = json.loads((out / "mlcalib.json").read_text())["calibration"]
    assert record["corpus"] == specs[kind]
    assert record["languages"]["sw"]["dropped"] == DROPPED[kind]
    assert bool(record["chat_template"]) == (kind == "chat")
    assert "sw" in json.dumps(record["languages"]["sw"]["origin"])


def test_a_template_in_a_file(specs, model, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE.replace("<", "["))
    out = tmp_path / "out"
    command = ["quantize", str(model), "--out", str(out), "--group-size", "32", "--seq-len", "32"]
    command += ["--languages", "en,sw", "--corpus", specs["chat"], "--tokens", "200"]
    done = CliRunner().invoke(app, [*command, "--chat-template-file", str(file)])
    assert done.exit_code == 0, done.output
    record = json.loads((out / "mlcalib.json").read_text())["calibration"]
    own = mlcalib.calibration(
        model, "en,sw", specs["chat"], tokens=200, seq_len=32, chat_template=True
    )
    assert record["chat_template"] not in (None, own.chat_template)
    assert record["fingerprint"] != own.fingerprint


@pytest.mark.parametrize("kind", ["c4", "wikipedia"])
def test_evaluation_reads_the_held_out_split(specs, model, kind, caplog):
    rows = mlcalib.evaluate(model, "en,sw", specs[kind], tokens=100, seq_len=32, progress=False)
    assert {row.n for row in rows} == {100}
    assert ("documents of the other split" in caplog.text) == (kind == "wikipedia")
