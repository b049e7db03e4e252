"""``mlcalib convert``."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A quantized checkpoint of any tool: a folder, or a GGUF file.", metavar="IN"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write. It must not exist yet.")],
    format: Annotated[  # noqa: A002
        str,
        typer.Option(
            help="The new format: compressed-tensors, gptq, gptq-v2, awq, gguf, or dense (the "
            "dequantized weights)."
        ),
    ],
    dtype: Annotated[
        str,
        typer.Option(
            help="The dtype of the weights that are not quantized: float32, bfloat16, float16, or "
            "auto to leave them as they are."
        ),
    ] = "auto",
) -> None:
    """Write a quantized checkpoint in another format, without quantizing it again.

    Codes, scales and zero points stay as they are.

    With --format dense it is written dequantized, for readers that have no kernel for its codes.

    Example: mlcalib convert QUANTIZED OUT --format awq
    """
    import mlcalib

    mlcalib.convert(source, out, format, dtype=dtype)
    typer.echo(f"written to {out}")
