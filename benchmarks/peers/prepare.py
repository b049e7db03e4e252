"""Write what every tool gets: SmolLM2-135M in float32, and token ids of ten languages.

    python benchmarks/peers/prepare.py TEXT OUT [--tokens 20480]

Run in mlcalib's environment. Below OUT: ``float`` (a folder with safetensors and the tokenizer) and
``ids.safetensors``: language → int64 [sequences, 512].
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import save_file

import mlcalib
from mlcalib.models.loading import load_model, load_tokenizer

SEQ_LEN, LANGUAGES = 512, "multi10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=20_480)
    arguments = parser.parse_args()
    source = str(mlcalib.find_smollm2())
    model, tokenizer = load_model(source), load_tokenizer(source)
    calibration = mlcalib.calibration(
        tokenizer, LANGUAGES, f"files:{arguments.text}", tokens=arguments.tokens, seq_len=SEQ_LEN
    )
    if sum(ids.numel() for ids in calibration.ids.values()) != arguments.tokens:
        raise ValueError(
            f"{arguments.tokens} tokens are no whole sequences of {SEQ_LEN} in every language, and "
            f"tools take whole ones; give a multiple of {SEQ_LEN * len(calibration.ids)}."
        )
    shutil.rmtree(arguments.out / "float", ignore_errors=True)
    model.config.use_cache = True  # as published
    model.save_pretrained(arguments.out / "float")
    tokenizer.save_pretrained(arguments.out / "float")
    save_file(calibration.ids, arguments.out / "ids.safetensors")


if __name__ == "__main__":
    main()
