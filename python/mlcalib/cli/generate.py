"""``mlcalib generate``."""

from pathlib import Path
from typing import Annotated

import typer

from mlcalib.cli.arguments import LANGUAGES, Device, Dtype, say_device

PROMPTS = (
    "The prompts: a JSONL or Parquet file with id, language and prompt, or with the fields of the "
    "Aya evaluation suite (inputs, language, script), which Dolly-200 has."
)

Languages = Annotated[
    str | None, typer.Option(help=f"{LANGUAGES} By default all that the prompts have.")
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Draw this many prompts of each language, with --seed. By default all are used."
    ),
]
MaxTokens = Annotated[int, typer.Option(help="The largest number of tokens in an answer.")]
BatchSize = Annotated[
    int,
    typer.Option(
        help="How many prompts, of about the same length, are answered at a time. Use the same "
        "number for models that are compared, because other batches give slightly other results."
    ),
]


def generate(
    model: Annotated[str, typer.Argument(help="A folder with safetensors, or a name on the hub.")],
    prompts: Annotated[Path, typer.Option(help=PROMPTS)],
    out: Annotated[
        Path,
        typer.Option(help="The JSONL file to write. If it exists, the missing answers are added."),
    ],
    languages: Languages = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="The seed with which --limit draws prompts.")] = 0,
    max_tokens: MaxTokens = 256,
    batch_size: BatchSize = 1,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Let a model answer prompts, for 'mlcalib judge' and 'mlcalib annotate'.

    The model always takes the most likely next token.

    Example: mlcalib generate MODEL --prompts prompts.jsonl --languages en,sw --out answers.jsonl
    """
    from mlcalib.judging import generate, read_prompts

    say_device(device)
    wanted = read_prompts(prompts, languages, limit=limit, seed=seed)
    generate(
        model,
        wanted,
        out,
        max_tokens=max_tokens,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
    )
    typer.echo(f"{len(wanted):,} answers in {out}")
