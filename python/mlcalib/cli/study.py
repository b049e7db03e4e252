"""``mlcalib study``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlcalib.cli.arguments import CORPUS, DEVICE, DTYPE, Memory
from mlcalib.cli.benchmarks import Data, Limit
from mlcalib.cli.shared import over_ranks

if TYPE_CHECKING:
    from mlcalib.common.ranks import Ranks


@over_ranks
def study(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="The study: paper, paper-small, quantization-multilingual, "
            "quantization-multilingual-small, curves, or the path of a YAML file.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The folder to write. It may hold an unfinished study.")
    ],
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Only print what would be made, how much text, memory and disk it takes, and what "
            "is finished already.",
        ),
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Replaces the models of the study. May be given several times."),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help=f"Replaces the corpus of the study. {CORPUS}")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Replaces the number of calibration tokens of each setting."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"Replaces the dtype of the study. {DTYPE}")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help=f"Replaces the device of the study. {DEVICE}")
    ] = None,
    memory: Memory = None,
    hidden_states: Annotated[
        str | None,
        typer.Option(
            help="Where the activations of the text are kept between two blocks: memory or disk."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Replaces the tasks of the evaluation, separated by commas."),
    ] = None,
    languages: Annotated[
        str | None, typer.Option(help="Replaces the languages of the evaluation: a set or a list.")
    ] = None,
    data: Data = None,
    limit: Limit = None,
    *,
    ranks: "Ranks",
) -> None:
    """Quantize and evaluate models in every combination of calibration settings and quantizers.

    If it is interrupted, or if settings are added, the same command continues with what is missing.

    Example: mlcalib study paper-small --out DIR --corpus files:TEXT --tokens 40960
    """
    from mlcalib.evaluation.tasks import listed
    from mlcalib.studies import study as run

    evaluation: dict[str, Any] = {
        "tasks": None if tasks is None else listed(tasks),
        "languages": languages,
        "data": None if data is None else str(data),
        "limit": limit,
    }
    given: dict[str, Any] = {
        "models": model,
        "corpus": corpus,
        "tokens": tokens,
        "dtype": dtype,
        "device": device,
        "memory": memory,
        "hidden_states": hidden_states,
        "evaluation": {key: value for key, value in evaluation.items() if value is not None}
        or None,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    run(
        spec,
        out,
        plan_only=plan,
        progress=ranks.writes,
        echo=typer.echo,
        ranks=ranks,
        **changes,
    )
