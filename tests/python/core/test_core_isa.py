"""Every instruction set that this machine has decides the same codes."""

import os
import subprocess
import sys

import pytest
import torch
from core_data import NEARLY_ALL, activations, random_gram, random_weight, share_equal

from mlcalib import _core as core

SOLVE = """
import sys
import torch
from mlcalib import _core as core

torch.set_num_threads(1)
weight, gram, output, x = torch.load(sys.argv[1])
results = {"isa": core.isa()}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    statistic = core.make_statistic("gram", x.shape[1])
    statistic.update(x.to(dtype))
    results[dtype] = statistic.state()["gram"]
for bits, symmetric in ((3, False), (4, True)):
    spec = core.GridSpec(bits, 64, symmetric, "gram")
    solved = {
        "rtn": core.rtn(weight, spec, gram),
        "clip": core.rtn(weight, core.GridSpec(bits, 64, symmetric, "gram_block"), gram),
        "activation": core.gptq(weight, gram, core.GptqOptions(spec)),
        "tensor": core.gptq(
            weight,
            gram,
            core.GptqOptions(core.GridSpec(bits, -1, True, "gram", per_tensor=True)),
        ),
        "running": core.gptq(
            weight, gram, core.GptqOptions(spec, order="natural", static_grid=False)
        ),
        "two-sided": core.gptq([weight], gram, [output], core.GptqOptions(spec))[0],
    }
    results[bits] = {
        name: (each.codes, each.grid.scale, each.dequantize(), each.loss)
        for name, each in solved.items()
    }
torch.save(results, sys.argv[2])
"""


def run(code, isa, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"MLCALIB_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isa")
    inputs = (random_weight(130, 320), random_gram(320), random_gram(130), activations(333, 130))
    torch.save(inputs, folder / "input.pt")
    found = {}
    for isa in core.available_isas():
        done = run(SOLVE, isa, folder / "input.pt", folder / f"{isa}.pt")
        assert done.returncode == 0, done.stderr
        found[isa] = torch.load(folder / f"{isa}.pt")
    return found


@pytest.mark.parametrize("isa", core.available_isas())
def test_the_variable_chooses(results, isa):
    assert results[isa]["isa"] == isa


@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("bits", [3, 4])
def test_rounding_is_the_same_bit_for_bit(results, isa, bits):
    found, wanted = results[isa][bits]["rtn"], results["baseline"][bits]["rtn"]
    for one, other in zip(found[:3], wanted[:3], strict=True):
        assert torch.equal(one, other)
    assert found[3] == pytest.approx(wanted[3], rel=1e-5)


# Sums of a Gram may be fused and reordered.
@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_grams_are_nearly_the_same(results, isa, dtype):
    found, wanted = results[isa][dtype], results["baseline"][dtype]
    size = wanted.diagonal().sqrt()
    assert ((found - wanted).abs() <= 1e-5 * size[:, None] * size).all()


# The products between blocks are torch's, which may choose otherwise from one run to the next.
@pytest.mark.parametrize("isa", core.available_isas())
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("mode", ["activation", "running", "two-sided"])
def test_gptq_is_nearly_the_same(results, isa, bits, mode):
    found, wanted = results[isa][bits][mode], results["baseline"][bits][mode]
    assert share_equal(found[0], wanted[0]) >= NEARLY_ALL
    assert (found[3] is None) == (mode == "two-sided")
    if found[3] is not None:
        assert found[3] == pytest.approx(wanted[3], rel=2e-3)


def test_the_best_is_the_default():
    done = run("import torch; from mlcalib import _core; print(_core.isa())", "")
    assert done.stdout.strip() == core.available_isas()[0]
    assert core.available_isas()[-1] == "baseline"


@pytest.mark.parametrize(
    "call",
    [
        "core.isa()",
        "core.rtn(torch.ones(200, 8), core.GridSpec())",  # thrown by a worker thread
    ],
)
def test_an_unknown_instruction_set_is_refused(call):
    done = run(f"import torch; from mlcalib import _core as core; {call}", "vax")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: MLCALIB_ISA=vax is not an instruction set")
    assert ", ".join(core.available_isas()) in last
    assert "unset it" in last
