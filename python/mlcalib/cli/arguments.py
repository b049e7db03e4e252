"""Arguments that commands share."""

from typing import Annotated

import typer

MODEL = "A folder with safetensors, a hub name, or a GGUF file."
LANGUAGES = (
    "A set (multi10, multi, aya23 …), languages (en,sw) or shares (en:0.7,sw:0.3). The command "
    "languages lists them."
)
CORPUS = (
    "sample (about 100 machine-written sentences per language, for demonstration only); "
    "files:PATH with LANG/{calib,eval}.txt, .jsonl or .parquet; c4, wikipedia or hub:NAME, "
    "streamed from the Hugging Face hub; or translated:MODEL?source=en&corpus=CORPUS, another "
    "corpus translated by an NLLB, M2M100 or MADLAD-400 model."
)
SEPARATOR = (
    "What stands between documents: eos, bos or a text (\\n is a newline). Default: what the "
    "tokenizer adds by itself."
)
FORMAT = (
    "compressed-tensors (4 or 8 bits), gptq (2, 3, 4 or 8; gptq-v2 with zero points as they are), "
    "awq (4), compressed-tensors-int8 (W8A8), gguf (group size 32: Q4_0, Q4_1 or Q8_0), or dense "
    "(dequantized weights)."
)
DTYPE = "auto (as stored; float32 for GGUF), float32, bfloat16 or float16."

DEVICE = "cpu, cuda, cuda:N, or auto (a GPU, where there is one and mlcalib was built for it)."

Languages = Annotated[str, typer.Option(help=LANGUAGES)]
Corpus = Annotated[str, typer.Option(help=CORPUS)]
SeqLen = Annotated[int, typer.Option(help="Tokens of a sequence, the context.")]
Separator = Annotated[str | None, typer.Option(help=SEPARATOR)]
Dtype = Annotated[str, typer.Option(help=DTYPE)]
Device = Annotated[str, typer.Option(help=DEVICE)]


def say_device(asked: str) -> None:
    """Print on which device a command runs, and why.

    Raises:
        ValueError: there is no such device.
    """
    from mlcalib.models.device import choose_device, explain

    typer.echo(explain(asked, choose_device(asked)))


def unescape(separator: str | None) -> str | None:
    """Return a separator in which a written n or t behind a backslash is a newline or a tab."""
    return None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")
