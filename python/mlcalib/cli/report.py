"""``mlcalib report``."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="The folder that 'mlcalib study' wrote, which may be unfinished; or one or more "
            "files that 'mlcalib evaluate --out' wrote.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file to write. Markdown, tables and figures are written beside it. By "
            "default it is report/report.html in the folder of the study, or "
            "ROWS.report/report.html beside ROWS.jsonl."
        ),
    ] = None,
    float_: Annotated[
        str | None,
        typer.Option(
            "--float",
            help="The model of an evaluation that the others are compared with. By default it is "
            "the first one.",
        ),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option(
            help="How often the bootstrap draws documents for every interval. By default 10,000 "
            "times, and more often in large studies."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the bootstrap.")] = 0,
) -> None:
    """Write a report of a study or an evaluation.

    It is one HTML page, with Markdown, CSV tables, and SVG and PDF figures beside it.

    Example: mlcalib report rows.jsonl
    """
    from mlcalib.report import write_evaluation_report, write_report

    if any(path.is_dir() for path in paths):
        page = write_report(_study(paths, float_), out, resamples=resamples, seed=seed)
    else:
        page = write_evaluation_report(
            list(paths), out, baseline=float_, resamples=resamples or 10_000, seed=seed
        )
    beside = f"{page.parent / 'tables'} and {page.parent / 'figures'}"
    typer.echo(f"written to {page}, {page.with_suffix('.md')}, {beside}")


def _study(paths: list[Path], float_: str | None) -> Path:
    if len(paths) > 1:
        raise ValueError(
            f"{len(paths)} paths were given, of which one is a folder; give the folder of one "
            "study, or files of rows."
        )
    if float_ is not None:
        raise ValueError("--float is for rows of an evaluation; a study knows its float model.")
    return paths[0]
