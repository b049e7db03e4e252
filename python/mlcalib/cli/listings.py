"""``mlcalib languages`` and ``mlcalib info``: lists of what is available."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def languages(
    of: Annotated[
        str | None,
        typer.Argument(
            metavar="SET", help="List only the languages of this set (multi10) or list (en,sw)."
        ),
    ] = None,
) -> None:
    """List the languages that mlcalib knows, and the benchmarks that have them.

    The tier says how much text a language has, from 0 (hardly any) to 5 (Joshi et al. 2020). In a
    pipe the columns are separated by tabs.

    Example: mlcalib languages multi10
    """
    import mlcalib.languages as catalogue

    entries = catalogue.languages()
    if of is not None:
        entries = [catalogue.language(code) for code in catalogue.language_set(of).weights]
    header = ["code", "name", "script", "family", "tier", "benchmarks"]
    rows = [
        [
            entry.code,
            entry.name,
            entry.script or "",
            entry.family or "",
            "" if entry.tier is None else str(entry.tier),
            ", ".join(sorted(entry.benchmarks)),
        ]
        for entry in entries
    ]
    if not sys.stdout.isatty():
        typer.echo("\n".join(map("\t".join, [header, *rows])))
        return
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def info() -> None:
    """Print the versions and instruction sets in use, and the methods and formats available."""
    import torch
    import transformers

    import mlcalib
    from mlcalib import _core
    from mlcalib.formats import formats
    from mlcalib.languages import set_names
    from mlcalib.models import adapters
    from mlcalib.quantizers import quantizers

    build = _core.build_info()
    lines = {
        "mlcalib": mlcalib.__version__,
        "built with": f"torch {build['torch']}, {build['compiler']}, {build['build_type']}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "instruction set": f"{_core.isa()} (of {', '.join(_core.available_isas())})",
        "threads": str(torch.get_num_threads()),
        "methods": ", ".join(quantizers.names()),
        "formats": ", ".join(formats.names()),
        "architectures": ", ".join(name for a in adapters() for name in a.architectures),
        "language sets": ", ".join(set_names()),
        "statistics": ", ".join(_core.statistic_names()),
    }
    for name, value in lines.items():
        typer.echo(f"{name + ':':17}{value}")
