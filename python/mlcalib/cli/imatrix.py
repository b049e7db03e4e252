"""``mlcalib imatrix``."""

from pathlib import Path
from typing import Annotated

import typer

from mlcalib.cli.arguments import (
    MODEL,
    AllowShort,
    Corpus,
    Device,
    Dtype,
    Languages,
    Memory,
    Separator,
    SeqLen,
    WindowBos,
    read_calibration,
    say_device,
)


def imatrix(
    model: Annotated[str, typer.Argument(help=MODEL)],
    out: Annotated[
        Path,
        typer.Option(
            help="The file to write, in the GGUF layout. A name that ends in .dat gets the layout "
            "that llama.cpp used before July 2025."
        ),
    ],
    languages: Languages = "multi10",
    corpus: Corpus = "sample",
    tokens: Annotated[
        int,
        typer.Option(
            help="The number of tokens of all languages together. They are split by the shares of "
            "the languages."
        ),
    ] = 40960,
    seq_len: SeqLen = None,
    seed: Annotated[int, typer.Option(help="The seed with which documents are shuffled.")] = 0,
    separator: Separator = None,
    window_bos: WindowBos = True,
    allow_short: AllowShort = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    memory: Memory = None,
) -> None:
    """Write an importance matrix for llama.cpp, from text in any mixture of languages.

    Example: mlcalib imatrix MODEL --languages multi10 --corpus files:TEXT --out imatrix.gguf;
    then: llama-quantize --imatrix imatrix.gguf MODEL-F16.gguf OUT.gguf Q4_K_M
    """
    import mlcalib
    from mlcalib.common.files import check_file

    check_file(out)
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
    found = mlcalib.imatrix(model, calibration, dtype=dtype, device=device, memory=memory)
    found.save(out)
    typer.echo(f"{len(found.statistics)} tensors written to {out}")
