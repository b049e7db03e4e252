"""Where a run happens: the choice, and on a GPU the results of the CPU."""

import json
import logging

import pytest
import torch
from core_data import share_equal
from small_models import ARCHITECTURES, tiny_llama, tiny_model
from small_text import IDS

import mlcalib
from mlcalib import _core
from mlcalib.evaluation import layer_losses
from mlcalib.judging import LanguageModelJudge, RewardModelJudge, generate
from mlcalib.models import device
from mlcalib.models.device import CPU, choose_device, explain, free_memory, short_of_memory
from mlcalib.results.generations import Prompt

NO_GPU = not torch.cuda.is_available() or _core.build_info()["cuda"] == "none"
on_a_gpu = pytest.mark.skipif(NO_GPU, reason="needs a GPU and a core that was built with CUDA")
METHODS = ["rtn", "gptq", "awq", "smoothquant"]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "cuda:-1"])
def test_strange_devices_are_refused(name):
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_without_a_gpu_auto_is_the_cpu_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    assert explain("auto", choose_device("auto")) == "device: cpu (torch sees no GPU)"
    assert explain("cpu", choose_device("cpu")) == "device: cpu"
    with pytest.raises(ValueError, match="'cuda', but torch sees no GPU"):
        choose_device("cuda")


def test_a_core_without_cuda_says_how_to_build_it_once(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_core, "build_info", lambda: {"cuda": "none"})
    device._warn_once.cache_clear()
    assert choose_device("auto") == choose_device("auto") == torch.device("cpu")
    assert caplog.text.count("MLCALIB_CUDA=ON") == 1
    assert explain("auto", CPU) == "device: cpu (mlcalib was built without CUDA)"
    with pytest.raises(ValueError, match="MLCALIB_CUDA=ON"):
        choose_device("cuda:0")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_core, "build_info", lambda: {"cuda": "13.0"})
    assert choose_device("auto") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="there are 2 GPUs"):
        choose_device("cuda:2")


def test_a_device_is_checked_before_anything_is_read(tmp_path):
    none, prompt = str(tmp_path / "none"), Prompt("0", "en", "Hello")
    for call in (
        lambda: mlcalib.quantize(none, method="rtn", device="tpu"),
        lambda: mlcalib.quantize_checkpoint(none, tmp_path / "o", method="rtn", device="tpu"),
        lambda: mlcalib.load(none, device="tpu"),
        lambda: mlcalib.evaluate(none, device="tpu"),
        lambda: LanguageModelJudge(none, "{prompt}", device="tpu"),
        lambda: RewardModelJudge(none, device="tpu"),
        lambda: generate(none, [prompt], tmp_path / "answers.jsonl", device="tpu"),
    ):
        with pytest.raises(ValueError, match="device is 'tpu'"):
            call()


def test_memory_is_what_the_container_has_left(monkeypatch, tmp_path):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(device, "_CGROUPS", [(limit, used)])
    free, total = free_memory(CPU)
    assert 0 < free <= total
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert free_memory(CPU)[1] == total
    limit.write_text("5000\n")
    assert free_memory(CPU) == (4000, 5000)


def test_running_out_of_memory_says_what_was_held_and_what_takes_less():
    with (
        pytest.raises(torch.OutOfMemoryError, match=r"with 4 answers.*takes less: a smaller batch"),
        short_of_memory(CPU, "4 answers", "a smaller batch"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def alike(here, there, *, least=0.97):
    """Sums differ in the last bits, so a few codes do; losses hardly."""
    assert here.linears.keys() == there.linears.keys()
    for name, linear in here.linears.items():
        other = there.linears[name]
        assert other.codes.device == linear.codes.device
        assert share_equal(other.codes, linear.codes) >= least
        for language, loss in here.losses[name].items():
            assert there.losses[name][language] == pytest.approx(loss, rel=0.05)
    assert here.expert_tokens.keys() == there.expert_tokens.keys()


@on_a_gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_gpu_gives_what_the_cpu_gives(family, method, calibration, tokenizer):
    model = tiny_model(family, vocabulary=384)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"method": method, "progress": False, "tokenizer": tokenizer, "propagate": "float"}
    options |= (
        {"format": "compressed-tensors-int8"} if method == "smoothquant" else {"group_size": 32}
    )
    text = None if method == "rtn" else calibration
    here, there = (
        mlcalib.quantize(model, text, device=each, **options) for each in ("cpu", "cuda")
    )
    alike(here, there)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {each.device.type for each in there.model.parameters()} == {"cpu"}


@on_a_gpu
@pytest.mark.parametrize("correction", [0, 0.5])
def test_quantized_propagation_on_a_gpu(calibration, tokenizer, correction):
    model = tiny_llama(vocabulary=384)
    options = {
        "group_size": 32,
        "progress": False,
        "tokenizer": tokenizer,
        "correction": correction,
    }
    here, there = (
        mlcalib.quantize(model, calibration, device=each, **options) for each in ("cpu", "cuda")
    )
    alike(here, there, least=0.9)


@on_a_gpu
def test_a_model_on_a_gpu_is_quantized_and_saved_where_it_is(calibration, tokenizer, tmp_path):
    model = tiny_llama(vocabulary=384).cuda()
    quantized = mlcalib.quantize(
        model, calibration, tokenizer=tokenizer, group_size=32, progress=False
    )
    assert {each.device.type for each in quantized.model.parameters()} == {"cuda"}
    assert all(each.codes.is_cuda for each in quantized.linears.values())
    quantized.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "mlcalib.json").read_text())["device"] != "cpu"


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny_llama(vocabulary=384).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@on_a_gpu
@pytest.mark.parametrize("hidden", ["memory", "disk"])
def test_streamed_on_a_gpu_is_what_memory_gives_there(folder, calibration, tmp_path, hidden):
    options = {"group_size": 32, "progress": False, "device": "cuda"}
    mlcalib.quantize(folder, calibration, **options).save(tmp_path / "a")
    mlcalib.quantize_checkpoint(
        folder, tmp_path / "b", calibration, hidden_states=hidden, **options
    )
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@on_a_gpu
def test_hidden_states_that_do_not_fit_stay_with_the_host(
    folder, calibration, tmp_path, monkeypatch, caplog
):
    options = {"group_size": 32, "progress": False, "device": "cuda"}
    mlcalib.quantize(folder, calibration, **options).save(tmp_path / "a")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000))
    with caplog.at_level(logging.WARNING):
        mlcalib.quantize(folder, calibration, **options).save(tmp_path / "b")
    assert "kept in the host's memory" in caplog.text
    a, b = (tmp_path / each / "model.safetensors" for each in "ab")
    assert a.read_bytes() == b.read_bytes()


@on_a_gpu
def test_importance_and_losses_on_a_gpu(folder, calibration):
    here, there = (
        mlcalib.imatrix(folder, calibration, device=each, progress=False).mix()
        for each in ("cpu", "cuda")
    )
    for name, entry in here.items():
        assert there[name].squares == pytest.approx(entry.squares, rel=1e-3)
    quantized = mlcalib.quantize(folder, calibration, group_size=32, progress=False, device="cpu")
    text = {"tokens": 64, "seq_len": 32, "progress": False}
    (one,), (other,) = (
        layer_losses(folder, [quantized], "en,sw", device=each, **text) for each in ("cpu", "cuda")
    )
    for name, losses in one.items():
        assert other[name] == pytest.approx(losses, rel=0.02)


@on_a_gpu
def test_a_study_on_a_gpu(folder, tmp_path):
    spec = {
        "name": "gpu",
        "models": [str(folder)],
        "corpus": IDS,
        "tokens": 128,
        "seq_len": 32,
        "allow_short": True,
        "settings": ["en"],
        "quantizers": [{"method": "gptq", "bits": 4, "group_size": 32}],
        "evaluation": None,
        "layers": {"languages": "en", "tokens": 64},
        "device": "cuda",
    }
    spec["corpus"] = "sample"
    spec.pop("evaluation")
    mlcalib.study(spec, tmp_path / "study", progress=False, echo=lambda _: None)
    assert list((tmp_path / "study").rglob("model.safetensors"))
