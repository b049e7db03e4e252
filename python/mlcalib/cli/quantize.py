"""``mlcalib quantize``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mlcalib.cli.arguments import (
    FORMAT,
    MODEL,
    Corpus,
    Device,
    Dtype,
    Languages,
    Separator,
    SeqLen,
    say_device,
    unescape,
)


def quantize(
    model: Annotated[str, typer.Argument(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    method: Annotated[
        str, typer.Option(help="gptq, awq, smoothquant, rtn (which needs no text), or a plug-in.")
    ] = "gptq",
    bits: Annotated[
        list[str] | None,
        typer.Option(
            help="Bits of a weight, 2 to 8 (default: 4), and again: REGEX=BITS for linears whose "
            "name it matches; the first that matches counts."
        ),
    ] = None,
    group_size: Annotated[
        int, typer.Option(help="Input channels that share a scale; -1 for the whole row.")
    ] = 128,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Fix the zero point at mid-range.")
    ] = False,
    languages: Languages = "multi10",
    corpus: Corpus = "sample",
    tokens: Annotated[
        int, typer.Option(help="Calibration tokens of all languages together, split by shares.")
    ] = 40960,
    tokens_per_language: Annotated[
        int | None,
        typer.Option(
            help="In place of --tokens: every language gives so many, and its share weighs its "
            "statistics."
        ),
    ] = None,
    seq_len: SeqLen = 512,
    seed: Annotated[int, typer.Option(help="What documents are shuffled with.")] = 0,
    separator: Separator = None,
    chat_template: Annotated[
        bool,
        typer.Option(
            "--chat-template", help="Make text of conversations by the tokenizer's chat template."
        ),
    ] = False,
    chat_template_file: Annotated[
        Path | None, typer.Option(help="The same, by the Jinja template in this file.")
    ] = None,
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Use what there is where text is short.")
    ] = False,
    propagate: Annotated[
        str,
        typer.Option(
            help="quantized: statistics behind quantized blocks (two forwards); float: behind "
            "float ones (one forward)."
        ),
    ] = "quantized",
    format: Annotated[  # noqa: A002
        str, typer.Option(help=FORMAT)
    ] = "compressed-tensors",
    dtype: Dtype = "auto",
    device: Device = "cpu",
    hidden_states: Annotated[
        str,
        typer.Option(
            help="Where the text lives between two blocks: memory; or disk, for a model or text "
            "that is large, and from where a killed run goes on at once."
        ),
    ] = "memory",
    skip: Annotated[
        list[str] | None,
        typer.Option(help="REGEX; linears whose name it matches stay in floating point."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Further option of the method as NAME=VALUE, e.g. damp=0.02."),
    ] = None,
) -> None:
    """Quantize a model and write a checkpoint.

    Example: mlcalib quantize MODEL --out OUT --group-size 64 --languages multi10
    --corpus files:TEXT --tokens 40960
    """
    import mlcalib
    from mlcalib.checkpoints.record import summary
    from mlcalib.common.files import check_output
    from mlcalib.quantization.overrides import parse_bits
    from mlcalib.quantizers import quantizers

    if not out.with_name(f".{out.name}.parts").is_dir():  # an unfinished run may be there
        check_output(out)
    say_device(device)
    further = _options(option or [])
    width, overrides = parse_bits(bits or [])
    calibration = None
    if quantizers.get(method).needs:
        calibration = mlcalib.calibration(
            model,
            languages,
            corpus,
            tokens=tokens if tokens_per_language is None else None,
            tokens_per_language=tokens_per_language,
            seq_len=seq_len,
            seed=seed,
            separator=unescape(separator),
            chat_template=chat_template_file or chat_template,
            allow_short=allow_short,
        )
        typer.echo(calibration.table())
        typer.echo(f"separator: {calibration.separator}")
    record = mlcalib.quantize_checkpoint(
        model,
        out,
        calibration,
        method=method,
        propagate=propagate,  # type: ignore[arg-type]  # checked there
        format=format,
        dtype=dtype,
        device=device,
        hidden_states=hidden_states,  # type: ignore[arg-type]  # checked there
        skip=skip or (),
        overrides=overrides,
        bits=width,
        group_size=group_size,
        symmetric=symmetric,
        **further,
    )
    typer.echo(summary(record))
    typer.echo(f"written to {out}")


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"--option is '{item}', expected NAME=VALUE, e.g. damp=0.02.")
        options[name] = value
    return options
