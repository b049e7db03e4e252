"""Write checkpoints in every format, for foreign readers; run in mlcalib's own environment.

Below OUT/CASE: ``checkpoint``, and ``expected``, the in-memory model as an ordinary checkpoint.
"""

import argparse
import copy
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mlcalib._core import GridSpec, rtn
from mlcalib.checkpoints import save_checkpoint
from mlcalib.common.gguf_types import MIXES
from mlcalib.formats import formats, types_in_mix
from mlcalib.formats._gguf_blocks import GGUF_GRIDS
from mlcalib.models import gguf_architectures
from mlcalib.models.llm_int8 import Int8Linear
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/python"))
from small_models import tiny_llama
from small_tokenizer import make_tokenizer

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
INT8 = "compressed-tensors-int8"
BITS = {
    "compressed-tensors": tuple(range(2, 9)),
    "gptq": (2, 3, 4, 8),
    "gptq-v2": (4, 8),
    "awq": (4,),
}
FLOATS = {
    "compressed-tensors-fp8": GridSpec(8, -1, True, scale_dtype=BFLOAT, numbers="e4m3"),
    "compressed-tensors-mxfp4": GridSpec(
        4, 32, True, scale_dtype=torch.float8_e8m0fnu, numbers="e2m1"
    ),
    "compressed-tensors-nvfp4": GridSpec(
        4, 16, True, scale_dtype=torch.float8_e4m3fn, numbers="e2m1"
    ),
    "compressed-tensors-fp8-static": GridSpec(
        8, -1, True, scale_dtype=BFLOAT, numbers="e4m3", per_tensor=True
    ),
    "compressed-tensors-nvfp4-w4a4": GridSpec(
        4, 16, True, scale_dtype=torch.float8_e4m3fn, numbers="e2m1"
    ),
    "bitsandbytes": GridSpec(4, 32, True, scale_dtype=BFLOAT, numbers="nf4"),
    "bitsandbytes-double": GridSpec(4, 32, True, scale_dtype=torch.uint8, numbers="nf4"),
}
LLM_INT8, THRESHOLD = "llm_int8", 6.0
Q8_0 = GGUF_GRIDS["Q8_0"]


def cases() -> Iterator[tuple[str, str, GridSpec]]:
    """Yield (model, format, grid)."""
    for form, widths in BITS.items():
        for bits, symmetric, size in itertools.product(widths, (True, False), (32, -1)):
            if not (form == "gptq-v2" and not symmetric):  # what gptq writes too
                yield "random", form, GridSpec(bits, size, symmetric, scale_dtype=HALF)
    for kind, spec in GGUF_GRIDS.items():
        yield "random-256" if kind.endswith("_K") else "random", "gguf", spec
    yield "random", INT8, GridSpec(8, -1, True, scale_dtype=HALF)
    for model in ("random", "SmolLM2"):
        for form, spec in FLOATS.items():
            yield model, form, spec
    for form, bits, size, symmetric in (
        ("compressed-tensors", 4, 64, True),
        ("compressed-tensors", 4, 64, False),
        (INT8, 8, -1, True),
        ("gptq", 4, 64, True),
        ("awq", 4, 64, False),
        ("gguf", 4, 32, True),  # not Q4_1: its weights come from Q4_1
        ("gguf", 8, 32, True),
    ):
        yield "SmolLM2", form, GridSpec(bits, size, symmetric, scale_dtype=HALF)


def open_model(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a model and its tokenizer."""
    if name == "random":
        return tiny_llama(dtype=dtype, vocabulary=400), make_tokenizer()
    if name == "random-256":
        model = tiny_llama(dtype=dtype, vocabulary=400, hidden=256, intermediate=512)
        return model, make_tokenizer()
    file = str(find_smollm2())
    return load_model(file, str(dtype).removeprefix("torch.")), load_tokenizer(file)


def hidden_of(model: Any) -> str:
    """Return the hidden size for the name of a random model that is not the smallest."""
    return "-256" if model.config.hidden_size == 256 else ""


def write(folder: Path, model: Any, tokenizer: Any, form: str, spec: GridSpec) -> None:
    """Quantize by rounding; write the checkpoint and the model that it stands for.

    Where it has static ranges of inputs they are such that the largest values are clipped.
    """
    quantized = {
        name: rtn(module.weight.detach(), spec).replaced(input_bound=3.0)
        for name, module in linears_of(model).items()
    }
    checkpoint_format = formats.get(form)()
    save_checkpoint(model, tokenizer, folder / "checkpoint", checkpoint_format, quantized, {})
    expected = copy.deepcopy(model)
    for name, linear in quantized.items():
        weight = expected.get_submodule(name).weight
        weight.data = linear.dequantize().to(weight.dtype)
    expected.save_pretrained(folder / "expected")
    facts = {
        "model": (model.config.name_or_path and "SmolLM2-135M") or f"random{hidden_of(model)}",
        "format": form,
        "bits": spec.bits,
        "symmetric": spec.symmetric,
        "group": spec.group_size,
        "linears": list(quantized),
    }
    (folder / "case.json").write_text(json.dumps(facts))


def linears_of(model: Any) -> dict[str, torch.nn.Linear]:
    """Return the linears of the blocks."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


@torch.no_grad()
def write_int8(folder: Path, model: Any) -> None:
    """Write inputs with outliers, and what linears in LLM.int8() make of them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, linear in linears_of(model).items():
        x = torch.randn(9, linear.in_features, generator=generator).to(HALF).float()
        x[:, ::17] *= 4
        int8 = Int8Linear(linear, THRESHOLD)
        tensors |= {f"{name}.x": x, f"{name}.product": int8(x), f"{name}.codes": int8.weight}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "products.safetensors")
    model.save_pretrained(folder / "expected")
    facts = {"model": "random", "format": LLM_INT8, "bits": 8, "symmetric": True, "group": -1}
    (folder / "case.json").write_text(json.dumps({**facts, "linears": list(linears_of(model))}))


def write_mixes(folder: Path) -> None:
    """Write a model, and the types that mlcalib gives its linears in each mix of llama.cpp."""
    model, tokenizer = (
        tiny_llama(vocabulary=400, hidden=256, intermediate=320, layers=16),
        make_tokenizer(),
    )
    quantized = {name: rtn(m.weight.detach(), Q8_0) for name, m in linears_of(model).items()}
    save_checkpoint(model, tokenizer, folder / "checkpoint", formats.get("gguf")(), quantized, {})
    model.save_pretrained(folder / "expected")
    names = gguf_architectures()[type(model).__name__].tensor_names(16)
    types = {}
    for mix in MIXES:
        type_of = types_in_mix(mix, model.config, type(model).__name__)
        types[mix] = {
            f"{names.get_name(name)}.weight": type_of(name, linear.in_features)
            for name, linear in linears_of(model).items()
        }
    facts = {"model": "random", "format": "mixes", "bits": 8, "symmetric": True, "group": 32}
    (folder / "case.json").write_text(json.dumps({**facts, "types": types}))


def main() -> None:
    """Write all cases, or those of the small model alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="only the random model")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    for model_name, form, spec in cases():
        if arguments.small and model_name == "SmolLM2":
            continue
        dtype = FLOAT if form == "gguf" else BFLOAT if form in FLOATS else HALF
        model, tokenizer = open_model(model_name, dtype)
        kind = "sym" if spec.symmetric else "asym"
        case = f"{model_name}-{form}-{spec.bits}-{kind}-{spec.group_size}"
        write(arguments.out / case, model, tokenizer, form, spec)
    write_mixes(arguments.out / "random-mixes")
    write_int8(arguments.out / f"random-{LLM_INT8}", open_model("random", HALF)[0].float())


if __name__ == "__main__":
    main()
