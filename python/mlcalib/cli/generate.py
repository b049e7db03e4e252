"""``mlcalib generate``."""

from pathlib import Path
from typing import Annotated

import typer

from mlcalib.cli.arguments import LANGUAGES, Dtype

PROMPTS = (
    "JSONL or Parquet with id, language and prompt, or with the fields of the Aya evaluation suite "
    "(inputs, language, script), as Dolly-200 has."
)

Languages = Annotated[str | None, typer.Option(help=f"{LANGUAGES} Default: all that are there.")]
Limit = Annotated[
    int | None, typer.Option(help="Prompts per language, drawn by the seed. Default: all.")
]
MaxTokens = Annotated[int, typer.Option(help="Longest answer.")]
BatchSize = Annotated[
    int,
    typer.Option(
        help="Prompts at a time, of about the same length. Use the same one for models that are "
        "compared: other batches give other bits."
    ),
]


def generate(
    model: Annotated[str, typer.Argument(help="A folder with safetensors, or a hub name.")],
    prompts: Annotated[Path, typer.Option(help=PROMPTS)],
    out: Annotated[
        Path, typer.Option(help="JSONL to write; one that is there already is gone on with.")
    ],
    languages: Languages = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="What prompts are drawn with (--limit).")] = 0,
    max_tokens: MaxTokens = 256,
    batch_size: BatchSize = 1,
    dtype: Dtype = "auto",
) -> None:
    """Let a model answer prompts greedily, to be judged or rated.

    Example: mlcalib generate MODEL --prompts prompts.jsonl --languages en,sw --out answers.jsonl
    """
    from mlcalib.judging import generate, read_prompts

    wanted = read_prompts(prompts, languages, limit=limit, seed=seed)
    generate(model, wanted, out, max_tokens=max_tokens, batch_size=batch_size, dtype=dtype)
    typer.echo(f"{len(wanted):,} answers in {out}")
