"""What each format costs SmolLM2-135M in ten languages: by rounding, GPTQ en and GPTQ multi10.

    python benchmarks/python/formats_smollm2.py TEXT OUT [--formats Q4_K_M W4-g64] [--by gptq]

One study in the folder OUT: the model runs once over its calibration text for all formats. What OUT
has already is not done again, so a run that was stopped goes on, and formats can be added. Prints
bits per quantized weight, the KL divergence from the float model and the rise in token loss, and
writes OUT/size.svg.

Q4_K_M and its like are mixes of K-quants; since 256 does not divide the 576 channels of SmolLM2,
many of its linears have the types with blocks of 32 that llama.cpp takes instead. Rounding searches
ranges by squared error (range=mse). TEXT and the model are those of quality_smollm2.py. Only
linears of blocks are quantized, in every format.
"""

import argparse
from pathlib import Path
from typing import Any

import mlcalib
from mlcalib.common.gguf_types import MIXES

GROUPS = {"group_size": 64}
ROWS = {"group_size": -1, "symmetric": True}
BLOCKS = {"group_size": 32, "symmetric": True, "format": "gguf"}
SCHEMES = ("FP8_DYNAMIC", "NF4", "NF4_DOUBLE", "MXFP4A16", "NVFP4A16")
RANGES_OF_INPUTS = ("FP8", "NVFP4")  # which come from text: no rounding without it
FORMATS: dict[str, dict[str, Any]] = {
    **{f"W{bits}-row": {"bits": bits, **ROWS} for bits in (8, 4)},
    **{f"W{bits}-g64": {"bits": bits, **GROUPS} for bits in (2, 3, 4, 5, 6)},
    **{name: {"scheme": name} for name in (*SCHEMES, *RANGES_OF_INPUTS, *MIXES)},
    **{f"Q{bits}_0": {"bits": bits, **BLOCKS} for bits in (4, 5, 8)},
}
BY = {"rtn": {"method": "rtn", "range": "mse"}, "gptq": {"method": "gptq"}}
LLM_INT8 = {"method": "llm_int8"}


def study(text: Path, formats: list[str], by: list[str], scored: int) -> dict[str, Any]:
    quantizers = [
        {**BY[method], **FORMATS[name], "name": f"{method}-{name}"}
        for name in formats
        for method in by
        if method != "rtn" or name not in RANGES_OF_INPUTS
    ]
    return {
        "name": "formats",
        "models": ["smollm2"],
        "corpus": f"files:{text}",
        "tokens": 20_480,
        "seq_len": 512,
        "settings": ["en", "multi10"],
        "quantizers": [*quantizers, LLM_INT8],
        "evaluation": {"languages": "multi10", "tokens": scored, "fidelity": True},
        "layers": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--by", nargs="+", choices=list(BY), default=list(BY))
    parser.add_argument("--scored", type=int, default=2048, help="tokens of each language")
    given = parser.parse_args()
    found = mlcalib.study(study(given.text, given.formats, given.by, given.scored), given.out)
    print(found.table("sizes").to_markdown(index=False, floatfmt=".4f"))
    (given.out / "size.svg").write_text(found.figure("size").svg)


if __name__ == "__main__":
    main()
