"""``mlcalib study``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mlcalib.cli.arguments import CORPUS, DEVICE, DTYPE


def study(
    spec: Annotated[
        str, typer.Argument(metavar="STUDY", help="paper, paper-small, or the path of a YAML file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder; may hold an unfinished study.")],
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Only print cells, tokens, memory, disk, and what is done already."
        ),
    ] = False,
    corpus: Annotated[str | None, typer.Option(help=f"In place of the study's. {CORPUS}")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Of each setting, in place of the study's.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=f"In place of the study's. {DTYPE}")] = None,
    device: Annotated[str | None, typer.Option(help=f"In place of the study's. {DEVICE}")] = None,
    hidden_states: Annotated[
        str | None,
        typer.Option(help="Where text lives between blocks: memory or disk."),
    ] = None,
) -> None:
    """Quantize and evaluate models in every combination of calibration settings and quantizers.

    Killed or changed, it goes on with what is missing when it is called again.

    Example: mlcalib study paper-small --out DIR --corpus files:TEXT --tokens 40960
    """
    from mlcalib.studies import study as run

    given: dict[str, Any] = {
        "corpus": corpus,
        "tokens": tokens,
        "dtype": dtype,
        "device": device,
        "hidden_states": hidden_states,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    run(spec, out, plan_only=plan, echo=typer.echo, **changes)
