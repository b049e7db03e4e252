"""Read checkpoints with foreign readers; run in .venv-interop, which has no mlcalib.

Writes one JSON line for each case and reader: the largest difference of dequantized weights and of
logits to the in-memory model, or what went wrong.
"""

import argparse
import ctypes
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

INT8, FP8 = "compressed-tensors-int8", "compressed-tensors-fp8"
STATIC, W4A4 = "compressed-tensors-fp8-static", "compressed-tensors-nvfp4-w4a4"
FP4 = ("compressed-tensors-mxfp4", "compressed-tensors-nvfp4", W4A4)
IDS = torch.arange(24)[None] * 7 % 300
Difference = tuple[float | None, float | None]  # of weights, of logits


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Return the logits of a fixed text."""
    return model(IDS).logits.float()


@torch.no_grad()
def largest(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest difference."""
    return float((left.float() - right.float()).abs().max())


def weights_by_identity(model: Any, linears: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what each linear makes of the unit vectors: its weight, exactly."""
    for name in linears:
        module = model.get_submodule(name)
        eye = torch.eye(module.in_features, dtype=model.dtype)
        with torch.no_grad():
            yield name, module(eye).T


def read_transformers(case: dict[str, Any], folder: Path, expected: Any) -> Difference:
    """Load as any user does."""
    options: dict[str, Any] = {"dtype": expected.dtype}
    if case["format"] == "gguf":
        options["gguf_file"] = "model.gguf"
    loaded = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", **options)
    if case["format"] in ROUND:
        return read_rounding(case, loaded, expected, folder)
    # First the logits: compressed-tensors decompresses in the model's first forward.
    apart = largest(logits(loaded), logits(expected))
    if case["format"] in ("gptq", "gptq-v2", "awq"):
        return None, apart  # its kernels for CPUs multiply in other types than float16
    weights = [
        largest(weight, expected.get_submodule(name).weight)
        for name, weight in weights_by_identity(loaded, case["linears"])
    ]
    return max(weights), apart


def read_rounding(case: dict[str, Any], loaded: Any, expected: Any, folder: Path) -> Difference:
    """Compare weights as they are; logits with those of rounded activations, like the reader's."""
    handles = []
    with safe_open(folder / "checkpoint/model.safetensors", framework="pt") as file:
        for name in case["linears"]:
            of_input = [f"{name}.{each}" for each in ("input_scale", "input_global_scale")]
            stored = [file.get_tensor(each) for each in of_input if each in file.keys()]  # noqa: SIM118
            rounding = partial(ROUND[case["format"]], *stored)
            handles.append(expected.get_submodule(name).register_forward_pre_hook(rounding))
    # First the logits: compressed-tensors decompresses in the model's first forward.
    apart = largest(logits(loaded), logits(expected))
    for handle in handles:
        handle.remove()
    weights = [
        largest(loaded.get_submodule(name).weight, expected.get_submodule(name).weight)
        for name in case["linears"]
    ]
    return max(weights), apart


def round_tokens(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Round to int8 with a scale for each token, max |x| / 127.5: symmetric, dynamic, in x's dtype.

    As ``calculate_qparams`` in compressed-tensors' ``quantization/utils/helpers.py``.
    """
    (x,) = inputs
    scale = (x.abs().amax(-1, keepdim=True).float() / 127.5).to(x.dtype)
    scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
    codes = torch.clamp((x / scale), -128, 127).round()
    return (codes * scale,)


def round_tokens_to_fp8(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Round to FP8 with a scale for each token, max |x| / 448, in x's dtype."""
    (x,) = inputs
    scale = x.abs().amax(-1, keepdim=True) / torch.tensor(448.0, dtype=x.dtype)
    scale = torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)
    codes = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)
    return (codes * scale,)


def round_to_fp8(
    scale: torch.Tensor, _: Any, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Round to FP8 times a scale, in x's dtype."""
    (x,) = inputs
    codes = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)
    return (codes * scale,)


def round_to_nvfp4(
    factor: torch.Tensor, _: Any, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Round to FP4 numbers in groups of 16, whose scales are FP8 numbers divided by a factor.

    compressed-tensors divides by 6 in x's dtype.
    """
    (x,) = inputs
    groups = x.unflatten(-1, (-1, 16))
    step = groups.abs().amax(-1, keepdim=True) / torch.tensor(6, dtype=x.dtype)
    groups = groups.float()
    scale = (factor * step).clamp(max=448).to(torch.float8_e4m3fn).float()
    scale = torch.where(scale == 0, 2.0**-9, scale) / factor
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    edges = (numbers[1:] + numbers[:-1]) / 2
    units = groups / scale
    below = torch.bucketize(units.abs(), edges)  # of two that are as near, the lower one
    above = torch.bucketize(units.abs(), edges, right=True)
    nearest = torch.where(below % 2 == 0, below, above)  # and the even one
    return ((numbers[nearest] * units.sign() * scale).flatten(-2).to(x.dtype),)


ROUND: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    INT8: round_tokens,
    FP8: round_tokens_to_fp8,
    STATIC: round_to_fp8,
    W4A4: round_to_nvfp4,
}


def read_bitsandbytes(case: dict[str, Any], folder: Path, expected: Any) -> Difference:
    """Load as any user does; weights as bitsandbytes dequantizes them, not as its kernels round."""
    from bitsandbytes.functional import dequantize_4bit

    loaded = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", dtype=expected.dtype)
    apart = []
    for name in case["linears"]:
        weight = loaded.get_submodule(name).weight
        wanted = expected.get_submodule(name).weight
        # Of double quantization checkpoints say float32, and readers compute in the inputs' dtype.
        found = dequantize_4bit(weight.data, weight.quant_state).to(wanted.dtype)
        apart.append(largest(found, wanted))
    return max(apart), largest(logits(loaded), logits(expected))


def read_int8(case: dict[str, Any], folder: Path, expected: Any) -> Difference:
    """Run the linears of LLM.int8() as on GPUs: on CPUs bitsandbytes rounds no activations.

    Instead of logits, the products of linears are compared; bitsandbytes rounds them to float16.
    """
    from bitsandbytes.autograd._functions import MatMul8bitLt
    from bitsandbytes.nn import Linear8bitLt

    codes, products = [], []
    with safe_open(folder / "products.safetensors", framework="pt") as file, torch.no_grad():
        for name in case["linears"]:
            given = expected.get_submodule(name)
            linear = Linear8bitLt(
                given.in_features,
                given.out_features,
                bias=given.bias is not None,
                has_fp16_weights=False,
                threshold=6.0,
            )
            linear.load_state_dict(given.state_dict())
            linear = linear.to("cpu")
            linear.state.CB, linear.state.SCB = linear.weight.data, linear.weight.SCB
            x = file.get_tensor(f"{name}.x").half()
            product = MatMul8bitLt.apply(x, linear.weight, None, linear.bias, linear.state)
            codes.append(largest(linear.weight.data, file.get_tensor(f"{name}.codes")))
            products.append(largest(product, file.get_tensor(f"{name}.product")))
    return max(codes), max(products)


def read_gptqmodel(case: dict[str, Any], folder: Path, expected: Any) -> Difference:
    """Dequantize by GPTQModel's own torch linear, fed with the tensors of the file."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear, dequantize_gemm
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    config = json.loads((folder / "checkpoint/config.json").read_text())["quantization_config"]
    apart = []
    with safe_open(folder / "checkpoint/model.safetensors", framework="pt") as file:
        for name in case["linears"]:
            weight = expected.get_submodule(name).weight
            kind = AwqTorchLinear if case["format"] == "awq" else TorchLinear
            linear = kind(
                bits=config["bits"],
                group_size=config["group_size"],
                sym=config.get("sym", False),
                desc_act=False,
                in_features=weight.shape[1],
                out_features=weight.shape[0],
                register_buffers=True,
            )
            wanted = [
                key for key in ("qweight", "qzeros", "scales", "g_idx") if hasattr(linear, key)
            ]
            state = {
                key: file.get_tensor(f"{name}.{key}")
                for key in wanted
                if case["format"] != "awq" or key != "g_idx"
            }
            linear.load_state_dict(state, strict=False)
            if case["format"] == "awq":
                size = config["group_size"] if config["group_size"] != -1 else weight.shape[1]
                found = dequantize_gemm(
                    linear.qweight, linear.qzeros, linear.scales, config["bits"], size
                )
            else:
                if config["checkpoint_format"] == "gptq":
                    convert_gptq_v1_to_v2_format_module(linear, config["bits"], torch.int32)
                linear.post_init()
                found = linear.dequantize_weight()
            apart.append(largest(found.T, weight))
    return max(apart), None


def read_gguf(case: dict[str, Any], folder: Path, expected: Any) -> Difference:
    """Dequantize by the gguf package, in the order of the file."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, expected.config.num_hidden_layers)
    tensors = {t.name: t for t in gguf.GGUFReader(folder / "checkpoint/model.gguf").tensors}
    apart = []
    for name in case["linears"]:
        tensor = tensors[f"{names.get_name(name)}.weight"]
        found = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        weight = expected.get_submodule(name).weight
        heads = {
            "q_proj": expected.config.num_attention_heads,
            "k_proj": expected.config.num_key_value_heads,
        }.get(name.rpartition(".")[2])
        if heads is not None:  # pairs of rows back into halves
            found = found.reshape(heads, -1, 2, found.shape[1]).transpose(1, 2).reshape(found.shape)
        apart.append(largest(found, weight))
    return max(apart), None


def read_llama_cpp(case: dict[str, Any], folder: Path, expected: Any) -> Difference:
    """Run llama.cpp."""
    import llama_cpp

    path = str(folder / "checkpoint/model.gguf")
    model = llama_cpp.Llama(path, n_ctx=64, logits_all=True, verbose=False)
    model.eval(IDS[0].tolist())
    found = torch.from_numpy(model.scores[: IDS.shape[1]].copy())
    return None, largest(found, logits(expected)[0])


def read_mixes(case: dict[str, Any], folder: Path, expected: Any) -> Difference:
    """Count the linears to which llama.cpp's own quantizer gives another type, over all mixes."""
    import gguf
    import llama_cpp

    differing = 0
    for mix, types in case["types"].items():
        out = folder / f"{mix}.gguf"
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix}")
        options.allow_requantize = True
        source = str(folder / "checkpoint/model.gguf").encode()
        if llama_cpp.llama_model_quantize(source, str(out).encode(), ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp did not write {mix}")
        found = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
        differing += sum(found[name] != kind for name, kind in types.items())
    return float(differing), None


Reader = Callable[[dict[str, Any], Path, Any], Difference]
READERS: dict[str, tuple[tuple[str, ...], str, Reader]] = {
    "transformers, compressed-tensors": (
        ("compressed-tensors", INT8, FP8, STATIC, *FP4),
        "compressed-tensors",
        read_transformers,
    ),
    "transformers, GPTQModel": (("gptq", "gptq-v2", "awq"), "gptqmodel", read_transformers),
    "GPTQModel torch linear": (("gptq", "gptq-v2", "awq"), "gptqmodel", read_gptqmodel),
    "transformers, bitsandbytes": (
        ("bitsandbytes", "bitsandbytes-double"),
        "bitsandbytes",
        read_bitsandbytes,
    ),
    "bitsandbytes, LLM.int8()": (("llm_int8",), "bitsandbytes", read_int8),
    "gguf": (("gguf",), "gguf", read_gguf),
    "transformers": (("gguf",), "transformers", read_transformers),
    "llama-cpp-python": (("gguf",), "llama_cpp_python", read_llama_cpp),
    "llama.cpp's quantizer": (("mixes",), "llama_cpp_python", read_mixes),
}


def main() -> None:
    """Read every case with every reader of its format that is installed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", help="a reader, and again")
    arguments = parser.parse_args()
    with arguments.out.open("w") as out:
        for row in read_all(arguments.cases, arguments.only):
            out.write(json.dumps(row) + "\n")
            out.flush()


def too_old(case: dict[str, Any], installed: str) -> bool:
    """Return whether compressed-tensors packed a case otherwise, or had no such format yet."""
    new = case["format"] in FP4 or case["bits"] in (3, 5, 6, 7)
    return new and tuple(map(int, installed.split(".")[:2])) < (0, 18)


def read_all(cases: Path, only: list[str] | None) -> Iterator[dict[str, Any]]:
    """Yield a row for each case and reader."""
    for folder in sorted(cases.iterdir()):
        case = json.loads((folder / "case.json").read_text())
        expected = AutoModelForCausalLM.from_pretrained(folder / "expected").eval()
        for name, (formats, package, read) in READERS.items():
            if case["format"] not in formats or (only and name not in only):
                continue
            if package == "compressed-tensors" and too_old(case, version(package)):
                continue
            row = {key: case[key] for key in ("model", "format", "bits", "symmetric", "group")}
            try:
                row |= {"reader": name, "version": version(package)}
            except ImportError:
                continue  # said once, below the table
            try:
                row["weights"], row["logits"] = read(case, folder, expected)
            except Exception as error:  # what a reader raises is the result
                row["error"] = f"{type(error).__name__}: {error}"[:200]
            yield row


if __name__ == "__main__":
    main()
