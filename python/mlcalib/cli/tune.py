"""``mlcalib tune``."""

from pathlib import Path
from typing import Annotated

import typer

from mlcalib.cli.arguments import (
    MODEL,
    AllowShort,
    Corpus,
    Device,
    Languages,
    Separator,
    SeqLen,
    WindowBos,
    read_calibration,
    say_device,
)


def tune(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A quantized checkpoint of any tool, in a folder, in a format that keeps codes.",
            metavar="IN",
        ),
    ],
    model: Annotated[
        str, typer.Option(help=f"The float model that was quantized. {MODEL}", metavar="MODEL")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write. It must not exist yet.")],
    languages: Languages = "multi10",
    corpus: Corpus = "sample",
    tokens: Annotated[
        int,
        typer.Option(
            help="The number of tokens of all languages together, those held out among them. They "
            "are split by the shares of the languages."
        ),
    ] = 40960,
    seq_len: SeqLen = None,
    seed: Annotated[
        int, typer.Option(help="The seed of the order of documents and of sequences.")
    ] = 0,
    separator: Separator = None,
    window_bos: WindowBos = True,
    allow_short: AllowShort = False,
    learning_rate: Annotated[
        float,
        typer.Option(
            help="By how much a scale changes in a step at most, about, as a part of it. It falls "
            "to 0 over all steps."
        ),
    ] = 5e-4,
    epochs: Annotated[int, typer.Option(help="How often all text is read.")] = 2,
    batch: Annotated[int, typer.Option(help="The sequences in a step.")] = 2,
    held_out: Annotated[
        float,
        typer.Option(
            help="The share of the sequences of each language that is held out, to see whether "
            "tuning helps. A language with two or more has one at least."
        ),
    ] = 0.125,
    device: Device = "auto",
) -> None:
    """Train the scales of a quantized checkpoint, and write it with those that are best.

    Codes and zero points stay as they are. Predictions come nearer to those of the float model.

    Example: mlcalib tune QUANTIZED --model MODEL --out OUT --languages multi10
    --corpus files:TEXT --tokens 40960
    """
    import mlcalib
    from mlcalib.common.files import check_output

    check_output(out)
    say_device(device)
    calibration = read_calibration(
        model,
        languages,
        corpus,
        tokens=tokens,
        seq_len=seq_len,
        seed=seed,
        separator=separator,
        window_bos=window_bos,
        allow_short=allow_short,
    )
    record = mlcalib.tune_checkpoint(
        checkpoint,
        model,
        out,
        calibration,
        learning_rate=learning_rate,
        epochs=epochs,
        batch=batch,
        held_out=held_out,
        seed=seed,
        device=device,
    )
    typer.echo("KL(float || model) of held-out text, nats per token:")
    for language, (before, after) in record["kl"].items():
        typer.echo(f"{language}  {before:.4f} -> {after:.4f}")
    kept = record["kept_epoch"]
    typer.echo(
        f"scales after epoch {kept} of {epochs} were kept"
        if kept
        else "no epoch was better than before: scales are as they were"
    )
    typer.echo(f"written to {out}")
