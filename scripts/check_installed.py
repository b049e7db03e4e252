"""Check an installed mlcalib from outside: imports, the command line, a checkpoint that reloads.

Run it as `python -I scripts/check_installed.py` with the Python that has mlcalib: then neither the
working directory nor the user's site can lend what the installation lacks.
"""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

import mlcalib

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "python"))  # the tests' tiny model; not the package


def run(*args: object) -> str:
    """Run the installed `mlcalib` command; return what it printed."""
    command = [Path(sysconfig.get_path("scripts")) / "mlcalib", *map(str, args)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def check(folder: Path) -> None:
    """Quantize a tiny random model from text that the package brings, and reload it."""
    site = Path(sysconfig.get_path("platlib"))
    assert Path(mlcalib.__file__).is_relative_to(site), f"{mlcalib.__file__} is not in {site}"
    assert (Path(mlcalib.__file__).parent / "py.typed").exists()
    assert "transformers" not in sys.modules, "import mlcalib imported transformers"
    assert not list(site.glob("*mlcalib*.pth")), (
        "something of mlcalib runs at every start of Python"
    )

    from small_models import tiny_llama
    from small_tokenizer import make_tokenizer
    from transformers import AutoModelForCausalLM

    model = tiny_llama(vocabulary=384)
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    run("quantize", folder / "model", "--out", folder / "out", "--group-size", 32,
        "--languages", "en,sw", "--corpus", "sample", "--tokens", 512, "--seq-len", 64)  # fmt: skip
    ids = torch.arange(64)[None]
    with torch.no_grad():
        before = model(ids).logits
        after = AutoModelForCausalLM.from_pretrained(folder / "out")(ids).logits
    change = ((after - before).norm() / before.norm()).item()
    assert 0 < change < 0.5, f"the logits changed by {change:.3f} of their norm"
    print(f"quantized and reloaded: the logits changed by {change:.3f} of their norm")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        check(Path(temporary))
    print(run("info"))
