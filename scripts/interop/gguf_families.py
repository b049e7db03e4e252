"""Does llama.cpp compute what transformers computes, for each class that is written to GGUF?

    python gguf_families.py write OUT    in mlcalib's environment: files in float32, and logits
    python gguf_families.py read OUT     where llama-cpp-python is: how far its logits are apart

llama.cpp has GELU in a table of float16, by its approximation with tanh, and divides the deviations
of Gemma 3n's hidden units by one fewer; the model in memory does likewise. Models that see or hear
are compared by the language model inside. The file of digests
(``tests/python/formats/gguf_families.json``) says which files these were: ``--renew``.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

IDS = [number * 7 % 300 for number in range(24)]
TESTS = Path(__file__).parents[2] / "tests/python"


def write(out: Path, renew: bool) -> None:
    """Write a file and the logits of each case."""
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "sweep")]
    import torch
    from small_gguf import CASES, file_digest, gguf_model, write_gguf_model
    from tiny_architectures import architectures, tiny_models

    from mlcalib.formats._gguf_inside import inside_classes

    def gelu(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, y))

    def models() -> Iterator[tuple[str, Any]]:
        shown = set()
        for case in CASES:
            model = gguf_model(case)
            shown.add(type(model).__name__)
            yield case, model
        for name in sorted(set(inside_classes()) - shown):
            tiny = tiny_models(name, architectures()[name])
            model = next((each for _, each in tiny if not isinstance(each, str)), None)
            if model is None:
                print(f"{name} cannot be made here")
                continue
            text = model.config.get_text_config()
            if getattr(text, "layer_types", None) is None and hasattr(text, "sliding_window"):
                text.sliding_window = None  # shorter than the text, and llama.cpp would not slide
            yield name, model

    deviation = torch.std
    torch.std = lambda x, **options: deviation(x, **(options | {"unbiased": True}))
    digests = {}
    for case, model in models():
        file = write_gguf_model(model, out / case)
        if case in CASES:
            digests[case] = file_digest(file)
        for module in model.modules():
            if "GELU" in type(module).__name__.upper():
                module.forward = gelu
        # Llama 4's forward wants an image.
        whole = model.language_model if "Llama4ForCond" in type(model).__name__ else model
        with torch.no_grad():
            logits = whole(input_ids=torch.tensor([IDS])).logits[0].float()
        np.save(out / case / "logits.npy", logits.numpy())
    if renew:
        text = json.dumps(digests, indent=1) + "\n"
        (TESTS / "formats/gguf_families.json").write_text(text)


def read(out: Path) -> None:
    """Print a table: case, largest difference, and that relative to the largest logit."""
    import llama_cpp

    print("| case | largest difference of a logit | of the largest |\n|---|---|---|")
    worst = 0.0
    for folder in sorted(path.parent for path in out.glob("*/logits.npy")):
        expected = np.load(folder / "logits.npy")
        model = llama_cpp.Llama(
            str(folder / "model.gguf"),
            n_ctx=256, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False,
        )  # fmt: skip
        model.eval(IDS)
        apart = float(np.abs(model.scores[: len(IDS)] - expected).max())
        share = apart / float(np.abs(expected).max())
        worst = max(worst, share)
        print(f"| {folder.name} | {apart:.1e} | {share:.1e} |")
    if worst > 1e-3:
        raise SystemExit(f"a logit differs by {worst:.1e} of the largest")


def main() -> None:
    """Write or read."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["write", "read"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--renew", action="store_true", help="the file of digests")
    arguments = parser.parse_args()
    if arguments.what == "write":
        write(arguments.out, arguments.renew)
    else:
        read(arguments.out)


if __name__ == "__main__":
    main()
