"""Source folder against output folder, for every family: every key, every byte, every reason.

``-v`` names each pair that is compared; a difference without a reason fails with its file and key.
docs/reference/checkpoints.md has the reasons too.
"""

import json
from pathlib import Path

import pytest
from small_models import ARCHITECTURES, tiny_model
from small_text import IDS
from small_tokenizer import make_tokenizer

import mlcalib

REASONS = {
    ("config.json", "quantization_config"): "how the weights are quantized; not in dense ones",
    ("model.safetensors", ""): "the quantized weights",
    ("README.md", ""): "the card of the checkpoint, above that of the source",
    ("mlcalib.json", ""): "the record of what was done",
    ("quantize_config.json", ""): "repeats quantization_config for readers that look there",
}
"""(file, key) → why it is in the output and not in the source, or otherwise there."""

FORMATS = {
    "compressed-tensors": {"method": "gptq", "symmetric": True},
    "gptq": {"method": "rtn", "symmetric": True},
    "awq": {"method": "rtn"},
    "dense": {"method": "rtn"},
}
FILES = {
    "generation_config.json": '{"top_k": 7,\n"of theirs": [1, {"b": 2}]}',
    "special_tokens_map.json": '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}',
    "preprocessor_config.json": '{"size": {"height": 1}}',
    "processor_config.json": '{"processor_class": "X"}',
    "added_tokens.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "vocab.json": '{"a": 0}',
    "merges.txt": "a b\n",
    "LICENSE": "free\r\n",
    "modeling_x.py": "x = 1\n",
    "README.md": "---\nlicense: mit\nof_theirs: 1\n---\n\n# A model\n",
}


def written_by(release, config, tokenizer):
    """Return config and tokenizer config as a release of transformers writes them."""
    if release == 5:
        return config, tokenizer
    rope = config.pop("rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    config |= {"rope_theta": rope.get("rope_theta", 1e4), "rope_scaling": None}
    config |= {"torch_dtype": config.pop("dtype"), "transformers_version": "4.51.0"}
    return config, tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast", "of_theirs": None}


@pytest.fixture
def source(request, tmp_path):
    family, release = request.param
    folder = tmp_path / "source"
    tiny_model(family, vocabulary=384).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    for name, content in FILES.items():
        (folder / name).write_bytes(content.encode())
    names = ("config.json", "tokenizer_config.json")
    contents = [json.loads((folder / name).read_text()) for name in names]
    for name, content in zip(names, written_by(release, *contents), strict=True):
        (folder / name).write_text(json.dumps(content))
    return folder


def differences(source: Path, out: Path) -> set[tuple[str, str]]:
    """Return file and key of all that is not the same; of other files than JSON the key is ""."""
    found = set()
    for name in sorted({path.name for path in (*source.iterdir(), *out.iterdir())}):
        before, after = (
            path.read_bytes() if (path := folder / name).is_file() else None
            for folder in (source, out)
        )
        if before == after:
            continue
        if name.endswith(".json") and before is not None and after is not None:
            found |= {(name, key) for key in _keys(json.loads(before), json.loads(after))}
        else:
            found.add((name, ""))
    return found


def _keys(before, after, path=""):
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return {path} if before != after or type(before) is not type(after) else set()
    missing = object()
    found = set()
    for key in before.keys() | after.keys():
        inside = f"{path}.{key}" if path else key
        found |= _keys(before.get(key, missing), after.get(key, missing), inside)
    return found


def explained(source, out, form):
    expected = {("model.safetensors", ""), ("README.md", ""), ("mlcalib.json", "")}
    if form != "dense":
        expected.add(("config.json", "quantization_config"))
    if form == "gptq":
        expected.add(("quantize_config.json", ""))
    assert expected <= REASONS.keys()
    assert differences(source, out) == expected
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert "of_theirs: 1" in card
    assert card.endswith("# A model\n")


@pytest.mark.parametrize(
    ("source", "form"),
    [
        pytest.param((family, release), form, id=f"{family}-transformers{release}-{form}")
        for family in ARCHITECTURES
        for form in FORMATS
        for release in ((4, 5) if form == "compressed-tensors" else (4,))
    ],
    indirect=["source"],
)
def test_every_key_and_every_file(source, form, tmp_path):
    options = {"group_size": 32, "progress": False, "format": form} | FORMATS[form]
    text = None
    if options["method"] == "gptq":
        text = mlcalib.calibration(None, corpus=IDS, seq_len=32)
    mlcalib.quantize_checkpoint(source, tmp_path / "out", text, **options)
    explained(source, tmp_path / "out", form)


@pytest.mark.parametrize(
    "source",
    [(family, 4) for family in ARCHITECTURES],
    indirect=True,
    ids=lambda pair: pair[0],
)
def test_convert_keeps_them_too(source, tmp_path):
    options = {"method": "rtn", "group_size": 32, "symmetric": True, "progress": False}
    mlcalib.quantize_checkpoint(source, tmp_path / "first", format="gptq", **options)
    for form in ("compressed-tensors", "dense"):
        mlcalib.convert(tmp_path / "first", tmp_path / form, form)
        explained(source, tmp_path / form, form)
        found = differences(tmp_path / "first", tmp_path / form)
        assert {(name, key.partition(".")[0]) for name, key in found} == {
            ("config.json", "quantization_config"),
            ("mlcalib.json", "recipe"),  # its format
            ("model.safetensors", ""),
            ("quantize_config.json", ""),
            ("README.md", ""),  # how it is loaded
        }


@pytest.mark.parametrize("source", [("llama", 4)], indirect=True, ids=["llama"])
def test_a_gguf_file_holds_all_that_is_read(source, tmp_path):
    options = {"method": "rtn", "group_size": 32, "symmetric": True, "progress": False}
    mlcalib.quantize_checkpoint(source, tmp_path / "out", format="gguf", **options)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.gguf", "README.md", "mlcalib.json"}
