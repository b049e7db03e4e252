"""Arguments that commands share."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlcalib.calibration_sets import CalibrationSet

MODEL = "A folder with safetensors, a name on the Hugging Face hub, or a GGUF file."
LANGUAGES = (
    "The languages: the name of a set (multi10, multi, aya23 …), a list (en,sw), or a list with "
    "shares (en:0.7,sw:0.3). 'mlcalib languages' lists all languages."
)
CORPUS = (
    "Where the text comes from. 'sample' has about 100 machine-written sentences per language, for "
    "demonstration only. 'files:PATH' reads PATH/LANGUAGE/calib.txt and eval.txt (or .jsonl, or "
    ".parquet; also .gz or .zst). 'c4', 'wikipedia' and 'hub:NAME' stream a data set of the "
    "Hugging Face hub. 'translated:MODEL?source=en&corpus=CORPUS' translates another corpus with "
    "an NLLB, M2M100 or MADLAD-400 model."
)
SEPARATOR = (
    "What is put between two documents: eos, bos or a text, in which \\n is a newline. By default "
    "only what the tokenizer adds by itself."
)
FORMAT = (
    "The layout of the checkpoint: compressed-tensors (2 to 8 bits), gptq (2, 3, 4 or 8 bits; "
    "gptq-v2 stores zero points unchanged), awq (4 bits), compressed-tensors-int8 (8-bit weights "
    "and activations), compressed-tensors-fp8, -mxfp4 or -nvfp4 and bitsandbytes or "
    "bitsandbytes-double (floats of 8 and 4 bits, and NF4: see --scheme), gguf (K-quants: see "
    "--scheme; or groups of 32: Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0), or dense (dequantized weights)."
)
DTYPE = (
    "The dtype of the model: float32, bfloat16, float16, or auto for the dtype in which it is "
    "stored (float32 for a GGUF file)."
)

DEVICE = (
    "Where the model runs: cpu, cuda, cuda:N, or auto for a GPU if there is one and mlcalib was "
    "built for it."
)

Languages = Annotated[str, typer.Option(help=LANGUAGES)]
Corpus = Annotated[str, typer.Option(help=CORPUS)]
SeqLen = Annotated[
    int | None,
    typer.Option(
        help="The number of tokens of each sequence (the context). Default: 512, or the context of "
        "the model if it is shorter."
    ),
]
Separator = Annotated[str | None, typer.Option(help=SEPARATOR)]
WindowBos = Annotated[
    bool,
    typer.Option(
        "--window-bos/--no-window-bos",
        help="Whether every sequence begins as the tokenizer begins a text: with BOS, if it adds "
        "one.",
    ),
]
AllowShort = Annotated[
    bool,
    typer.Option(
        "--allow-short",
        help="If a language has too little text, use what there is instead of stopping.",
    ),
]
Dtype = Annotated[str, typer.Option(help=DTYPE)]
Device = Annotated[str, typer.Option(help=DEVICE)]
Memory = Annotated[
    float | None,
    typer.Option(
        help="GB that the run may take on its device. By default nine tenths of what is free. "
        "Where that is too little, it says what it does without; the result is the same."
    ),
]


def say_device(asked: str) -> None:
    """Print on which device a command runs, and why.

    Raises:
        ValueError: there is no such device.
    """
    from mlcalib.models.device import choose_device, explain

    typer.echo(explain(asked, choose_device(asked)))


def unescape(separator: str | None) -> str | None:
    """Return a separator in which a written backslash n or t has become a newline or a tab."""
    return None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")


def read_calibration(
    model: str, languages: str, corpus: str, *, separator: str | None, **given: Any
) -> "CalibrationSet":
    """Return the calibration set that options ask for, and print what is in it.

    Args:
        model: whose tokenizer.
        languages: see ``mlcalib.calibration``.
        corpus: see there.
        separator: as it was written; see ``unescape``.
        given: what else ``mlcalib.calibration`` takes.
    """
    import mlcalib

    separator = unescape(separator)
    calibration = mlcalib.calibration(model, languages, corpus, separator=separator, **given)
    typer.echo(calibration.table())
    typer.echo(f"separator: {calibration.separator}")
    if calibration.windows:
        typer.echo(f"every sequence begins with: {calibration.windows}")
    return calibration
