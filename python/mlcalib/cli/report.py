"""``mlcalib report``."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="What mlcalib study wrote; may be unfinished.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file; Markdown, tables and figures go beside it. Default: "
            "report/report.html in the study's folder."
        ),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(
            help="Resamples of the bootstrap behind every interval. Default: 10,000, more in large "
            "studies."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Write a study's report: one HTML page, Markdown, CSV tables, SVG and PDF figures."""
    from mlcalib.report import write_report

    page = write_report(folder, out, resamples=resamples, seed=seed)
    typer.echo(f"written to {page}, {page.with_suffix('.md')}, {page.parent}/tables and /figures")
