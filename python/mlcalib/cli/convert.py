"""``mlcalib convert``."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with a quantized checkpoint, or GGUF file, of any tool.", metavar="IN"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    format: Annotated[  # noqa: A002
        str, typer.Option(help="compressed-tensors, gptq, gptq-v2, awq or gguf.")
    ],
    dtype: Annotated[
        str,
        typer.Option(
            help="Of what is not quantized: auto (as it is), float32, bfloat16 or float16."
        ),
    ] = "auto",
) -> None:
    """Write a quantized checkpoint in another format: the same codes, scales and zero points.

    Example: mlcalib convert QUANTIZED OUT --format awq
    """
    import mlcalib

    mlcalib.convert(source, out, format, dtype=dtype)
    typer.echo(f"written to {out}")
