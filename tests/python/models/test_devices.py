"""Where a run happens: the choice of a device."""

import pytest
import torch

import mlcalib
from mlcalib import _core
from mlcalib.judging import LanguageModelJudge, RewardModelJudge, generate
from mlcalib.models import device
from mlcalib.models.device import CPU, choose_device, explain, free_memory, short_of_memory
from mlcalib.results.generations import Prompt


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "cuda:-1"])
def test_strange_devices_are_refused(name):
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_without_a_gpu_auto_is_the_cpu_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_core, "device_types", lambda: ["cpu"])
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    assert explain("auto", choose_device("auto")) == "device: cpu (torch sees no GPU)"
    assert explain("cpu", choose_device("cpu")) == "device: cpu"
    with pytest.raises(ValueError, match="'cuda', but torch sees no GPU"):
        choose_device("cuda")


def test_a_core_without_cuda_says_how_to_build_it_once(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_core, "device_types", lambda: ["cpu"])
    device._warn_once.cache_clear()
    assert choose_device("auto") == choose_device("auto") == torch.device("cpu")
    assert caplog.text.count("MLCALIB_CUDA=ON") == 1
    assert explain("auto", CPU) == "device: cpu (mlcalib was built without CUDA)"
    with pytest.raises(ValueError, match="MLCALIB_CUDA=ON"):
        choose_device("cuda:0")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_core, "device_types", lambda: ["cpu", "cuda"])
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
