"""The stand-in device keeps host and device apart as a GPU does, and mistakes on it have names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import standin
import torch
from core_data import random_gram, random_weight
from devices import on_the_standin
from small_models import tiny_llama

import mlcalib
from mlcalib import _core
from mlcalib.models import running
from mlcalib.models.device import choose_device, explain
from mlcalib.quantization.hidden_states import HiddenStates
from mlcalib.statistics import StatisticSet

pytestmark = on_the_standin
TWO_DEVICES = "Expected all tensors to be on the same device"


def ordered(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def run_script(*lines):
    """Run Python lines in a process of its own that has the stand-in; return what became of it."""
    begin = ["import standin", "standin.load_if_asked()", "import torch, ctypes"]
    return subprocess.run(
        [sys.executable, "-c", "\n".join([*begin, *lines])],
        env=os.environ | {"PYTHONPATH": str(Path(standin.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def quantize_there(calibration, tokenizer):
    """Quantize a model on the device, by a run that is correct without the mistake."""

    def run(model=None, **options):
        return mlcalib.quantize(
            model or tiny_llama(vocabulary=384),
            calibration,
            tokenizer=tokenizer,
            device="standin",
            group_size=32,
            progress=False,
            **options,
        )

    return run


def test_operators_give_what_the_cpu_gives():
    x = ordered(4, 6)
    here = x.to("standin")
    for compute in (
        lambda t: t @ t.T + 1,
        lambda t: t[1:, ::2].contiguous(),
        lambda t: t.unfold(1, 2, 2).transpose(0, 1).flatten(),
        lambda t: t[t > 5],
        lambda t: t[torch.tensor([2, 0])],
        lambda t: torch.cat([t, 2 * t]).softmax(-1),
        lambda t: t.clone().index_copy_(0, torch.tensor([1], device=t.device), t[:1]),
        lambda t: t.bfloat16().float().sort(descending=True).values,
        lambda t: torch.nn.functional.scaled_dot_product_attention(t[None], t[None], t[None]),
        lambda t: torch.zeros_like(t).add_(t, alpha=2).mul_(torch.tensor(3.0)),
        lambda t: torch.add(t, t, out=torch.empty(0, device=t.device)),
        lambda t: t.clone().resize_(5, 6)[:4],
        lambda t: t[1, 2].item() * torch.ones(2, device=t.device),
    ):
        found = compute(here)
        assert found.device == torch.device("standin:0")
        torch.testing.assert_close(found.cpu(), compute(x))


def test_a_view_shares_memory():
    x = torch.zeros(3, 4, device="standin")
    x[1].fill_(2)
    x.t()[0] = 5
    assert x.cpu().tolist() == [[5, 0, 0, 0], [5, 2, 2, 2], [5, 0, 0, 0]]


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: here @ there,
        lambda here, there: here.add_(there),
        lambda here, there: there.add_(here),
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.nn.functional.embedding(there.long() % 4, here),
        lambda here, there: torch.where(there > 0, here, here),
        lambda here, there: torch.empty((), device="cpu").add_(here.sum()),
    ],
)
def test_two_devices_in_one_operator_are_an_error(mix):
    x = ordered(4, 4)
    mix(x, x.clone())
    for other in ("cpu", "standin:1"):
        with pytest.raises(RuntimeError, match=TWO_DEVICES):
            mix(x.to("standin"), x.to(other))


def test_numbers_and_indices_may_come_from_the_cpu():
    x = ordered(3, 3).to("standin")
    assert (x * torch.tensor(2.0)).device.type == "standin"
    assert x[torch.tensor([0, 2])].shape == (2, 3)


def test_memory_is_given_back_and_ends():
    free = torch.standin.mem_get_info(0)[0]
    x = torch.empty(1 << 20, device="standin")
    assert x.isnan().all()  # no one has written it
    assert torch.standin.mem_get_info(0)[0] == free - x.nbytes
    assert torch.standin.mem_get_info(1)[0] == torch.standin.mem_get_info(1)[1]
    del x
    assert torch.standin.mem_get_info(0)[0] == free
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 40, device="standin")


def test_pinned_memory():
    x = ordered(5).pin_memory()
    assert x.is_pinned()
    assert not ordered(5).is_pinned()
    assert torch.equal(x.to("standin", non_blocking=True).cpu(), x)


def test_it_is_chosen_as_a_gpu_would_be():
    assert choose_device("auto") == choose_device("standin") == torch.device("standin:0")
    assert choose_device("standin:1") == torch.device("standin:1")
    assert "of 2 GiB free" in explain("auto", choose_device("auto"))
    with pytest.raises(ValueError, match="there are 2 GPUs"):
        choose_device("standin:2")


def test_a_kernel_does_not_take_a_tensor_of_the_host():
    weight, spec = random_weight(8, 64), _core.GridSpec(4, 32)
    found = _core.rtn(weight.to("standin"), spec)
    grid = _core.Grid(found.grid.scale, found.grid.zero.cpu(), spec)
    with pytest.raises((RuntimeError, ValueError), match="cpu"):
        _core.QuantizedLinear(found.codes, grid).dequantize()


def test_the_host_cannot_read_device_memory():
    done = run_script(
        "def careless(x): return ctypes.string_at(x.data_ptr(), 4)",
        "x = torch.ones(3, device='standin')",
        "assert ctypes.string_at(x.cpu().data_ptr(), 4)",
        "careless(x)",
    )
    assert done.returncode < 0
    assert "host access to device memory" in done.stderr
    assert "in careless" in done.stderr


def test_other_faults_stay_what_they_are():
    done = run_script("ctypes.string_at(64)")
    assert done.returncode < 0
    assert "device memory" not in done.stderr
    assert "Segmentation fault" in done.stderr


def test_a_model_on_two_devices_is_quantized_on_one(quantize_there):
    model = tiny_llama(vocabulary=384).to("standin")
    model.model.layers[1].to("standin:1")
    quantized = quantize_there(model)
    for name, linear in quantized.linears.items():
        assert linear.codes.device.index == int("layers.1." in name)
    alone = quantize_there()
    for name, linear in alone.linears.items():
        assert torch.equal(linear.codes, quantized.linears[name].codes.cpu())


# Three mistakes that a change of the package could make: each is made here, and is noticed.


def test_ids_left_on_the_cpu_are_noticed(quantize_there, monkeypatch):
    model = tiny_llama(vocabulary=384).to("standin")
    monkeypatch.setattr(running, "_start", lambda model, adapter: torch.device("cpu"))
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        quantize_there(model)


def test_a_gram_made_on_the_host_is_noticed(quantize_there, monkeypatch):
    update = StatisticSet.update
    monkeypatch.setattr(StatisticSet, "update", lambda self, x, *rest: update(self, x.cpu(), *rest))
    with pytest.raises(ValueError, match=r"is on cpu but weight is on standin:0"):
        quantize_there(propagate="float")


def test_a_numpy_call_on_a_device_tensor_is_noticed(quantize_there, monkeypatch):
    read = HiddenStates.read
    monkeypatch.setattr(
        HiddenStates,
        "read",
        lambda self, *key: torch.from_numpy(read(self, *key).detach().numpy()),
    )
    with pytest.raises(TypeError, match="can't convert standin:0 device type tensor to numpy"):
        quantize_there()


def test_a_gram_on_another_device_than_its_weight_is_refused():
    weight, gram = random_weight(8, 64).to("standin"), random_gram(64)
    for other in ("cpu", "standin:1"):
        with pytest.raises(ValueError, match=rf"gram is on {other}.* but weight is on standin:0"):
            _core.gptq(weight, gram.to(other))
