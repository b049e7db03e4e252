"""``mlcalib check``."""

from pathlib import Path
from typing import Annotated

import typer


def check(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint of any tool: a folder, or a GGUF file.")
    ],
) -> None:
    """Check a checkpoint: is it whole, is it what its config says, and who can read it.

    Ends with status 1 if there is an error. Nothing is unpickled and no code of it runs.

    Example: mlcalib check QUANTIZED
    """
    import mlcalib

    report = mlcalib.check(path)
    typer.echo(report.text())
    if not report.ok:
        raise typer.Exit(1)
