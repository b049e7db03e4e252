"""``mlcalib check``."""

from pathlib import Path
from typing import Annotated

import typer


def check(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint of any tool: a folder, or a GGUF file.")
    ],
) -> None:
    """Check a checkpoint: is it complete, does it fit its config, and which programs can load it?

    The exit status is 1 if something is damaged, 3 if all is whole but mlcalib cannot read it, and
    4 if mlcalib can, but transformers, vLLM, SGLang or (for a GGUF file) llama.cpp will not load
    it. No pickle is opened and no code of the checkpoint runs.

    Example: mlcalib check QUANTIZED
    """
    import mlcalib

    report = mlcalib.check(path)
    typer.echo(report.text())
    if report.status:
        raise typer.Exit(report.status)
