"""The command line."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from mlcalib.cli.annotate import annotate
from mlcalib.cli.check import check
from mlcalib.cli.convert import convert
from mlcalib.cli.evaluate import evaluate
from mlcalib.cli.generate import generate
from mlcalib.cli.imatrix import imatrix
from mlcalib.cli.judge import judge
from mlcalib.cli.listings import info, languages
from mlcalib.cli.lm_eval import CONTEXT, lm_eval
from mlcalib.cli.quantize import quantize
from mlcalib.cli.report import report
from mlcalib.cli.shared import alone
from mlcalib.cli.study import study
from mlcalib.cli.tune import tune

app = typer.Typer(
    help="Quantize multilingual language models with calibration text in many languages, and "
    "measure what it costs in each language.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write. It must not exist yet.")] = Path(
        "demo"
    ),
) -> None:
    """Quantize SmolLM2-135M with English text and with ten languages, and compare the results."""
    from mlcalib.cli.demo import run

    run(out, echo=typer.echo)


def print_version(asked: bool) -> None:
    """Print the version and end, if it was asked for."""
    if asked:
        import mlcalib

        typer.echo(f"mlcalib {mlcalib.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


SHARED = (quantize, study, evaluate)
ALONE = (
    tune,
    report,
    convert,
    check,
    imatrix,
    generate,
    judge,
    annotate,
    demo,
    languages,
    info,
)
for command in (*SHARED, *(alone(each) for each in ALONE)):
    app.command()(command)
app.command(context_settings=CONTEXT)(alone(lm_eval))


def main() -> None:
    """Run a command. Errors that a user can correct are printed without a traceback.

    With the environment variable MLCALIB_TRACEBACK=1 they have one.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except (ValueError, OSError, NotImplementedError, ImportError, ArithmeticError) as error:
        _fail(error)
    except RuntimeError as error:  # torch's LinAlgError is one
        _fail(error)


def _fail(error: Exception) -> None:
    if os.environ.get("MLCALIB_TRACEBACK"):
        raise error
    rank = f"rank {own}: " if (own := os.environ.get("RANK")) else ""  # of torchrun
    console.print(
        f"{rank}[bold red]{type(error).__name__}:[/] {escape(_said(error))}", soft_wrap=True
    )
    sys.exit(1)


def _said(error: Exception) -> str:
    """Return an error's message; of pydantic's errors only what a user needs."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for found in error.errors(include_url=False):
        where = ".".join(map(str, found["loc"]))
        said = str(found["ctx"]["error"]) if found["type"] == "value_error" else found["msg"]
        lines.append(f"{where}: {said}" if where else said)
    return "\n".join(lines)
