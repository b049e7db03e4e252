"""``mlcalib quantize``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlcalib.cli.arguments import (
    FORMAT,
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
from mlcalib.cli.shared import over_ranks

if TYPE_CHECKING:
    from mlcalib.common.ranks import Ranks


@over_ranks
def quantize(
    model: Annotated[str, typer.Argument(help=MODEL)],
    out: Annotated[Path, typer.Option(help="The folder to write. It must not exist yet.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="How codes are chosen: gptq (the default), awq, smoothquant, rtn (round to "
            "nearest, which needs no text), or the name of a plug-in."
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="The numbers of weights and activations by name: W4A16, W4A16_ASYM, W8A16, "
            "FP8, FP8_DYNAMIC, NF4, NF4_DOUBLE, MXFP4A16, NVFP4A16, NVFP4 (all with gptq), W8A8 "
            "(with smoothquant, in compressed-tensors-int8), or a mix of llama.cpp's K-quants, "
            "Q2_K to Q6_K, such as Q4_K_M (in gguf). It stands for --bits, --symmetric and a "
            "--group-size; --method and --group-size can be given too."
        ),
    ] = None,
    bits: Annotated[
        list[str] | None,
        typer.Option(
            help="The bits of each weight, from 2 to 8 (4 by default; 8 for smoothquant). Give "
            "--bits again as REGEX=BITS for linears whose name matches REGEX; the first one that "
            "matches counts."
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="How many input channels share a scale (128 by default; -1 for smoothquant). It "
            "must divide the input channels of every linear; -1 is the whole row."
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Fix the zero point at the middle of the range (the default for smoothquant), or "
            "choose one for each group (the default for all others).",
            show_default=False,
        ),
    ] = None,
    languages: Languages = "multi10",
    corpus: Corpus = "sample",
    tokens: Annotated[
        int,
        typer.Option(
            help="The number of calibration tokens of all languages together. They are split by "
            "the shares of the languages."
        ),
    ] = 40960,
    tokens_per_language: Annotated[
        int | None,
        typer.Option(
            help="Instead of --tokens: the number of calibration tokens of every language. The "
            "shares then weigh the statistics of the languages."
        ),
    ] = None,
    seq_len: SeqLen = None,
    seed: Annotated[int, typer.Option(help="The seed with which documents are shuffled.")] = 0,
    separator: Separator = None,
    window_bos: WindowBos = True,
    chat_template: Annotated[
        bool,
        typer.Option(
            "--chat-template",
            help="Turn conversations into text with the tokenizer's chat template.",
        ),
    ] = False,
    chat_template_file: Annotated[
        Path | None,
        typer.Option(help="Turn conversations into text with the Jinja template in this file."),
    ] = None,
    allow_short: AllowShort = False,
    quality: Annotated[
        str | None,
        typer.Option(
            help="How much is done with gptq: fast (float propagation and sweeps), balanced "
            "(quantized propagation and a correction, too) or best (and gradients of the loss). It "
            "stands for --propagate and options."
        ),
    ] = None,
    propagate: Annotated[
        str | None,
        typer.Option(
            help="'quantized' (the default unless --quality says otherwise) calibrates each block "
            "on the already quantized model, which runs the text through each block twice. 'float' "
            "calibrates each block on the float model, which runs it once."
        ),
    ] = None,
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option(help=f"{FORMAT} The default is compressed-tensors, or what --scheme says."),
    ] = None,
    activation_clip: Annotated[
        float,
        typer.Option(
            help="The share of each language's values that the static ranges of activations may "
            "leave outside, in formats that store them (--scheme FP8, NVFP4); 0 holds all of them."
        ),
    ] = 0.0,
    kv_cache: Annotated[
        str | None,
        typer.Option(
            help="fp8 stores scales of keys and values, of the calibration text, for readers that "
            "keep their cache in 8 bits; in the formats of compressed-tensors."
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    memory: Memory = None,
    hidden_states: Annotated[
        str,
        typer.Option(
            help="Where the activations of the text are kept between two blocks: memory, or disk. "
            "Use disk for much text or a large model; an interrupted run then continues at once."
        ),
    ] = "memory",
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="A regular expression. Linears whose name it matches stay in floating point. "
            "It can be given several times."
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Only print what the run takes of the device's memory, and what it does without.",
        ),
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the method as NAME=VALUE, e.g. damp=0.02. It can be given several "
            "times."
        ),
    ] = None,
    other_threads: Annotated[
        bool,
        typer.Option(
            "--other-threads",
            help="Let an interrupted run continue with another number of threads. Blocks that are "
            "finished stay; the last bits of others may differ, and the record says so.",
        ),
    ] = False,
    *,
    ranks: "Ranks",
) -> None:
    """Quantize a model and write a checkpoint that other programs can load.

    The model is read one block at a time. If the command is interrupted, the same command continues
    where it stopped. Started by torchrun, its processes share the work.

    Example: mlcalib quantize MODEL --out OUT --group-size 64 --languages multi10
    --corpus files:TEXT --tokens 40960
    """
    import mlcalib
    from mlcalib.checkpoints.record import summary
    from mlcalib.common.files import check_output, parts_folder
    from mlcalib.quantization.overrides import parse_bits
    from mlcalib.quantization.quantize_checkpoint import plan_checkpoint
    from mlcalib.quantization.scheme import choose
    from mlcalib.quantizers import quantizers

    if ranks.writes and not (plan or parts_folder(out).is_dir()):  # an unfinished run may be there
        check_output(out)
    say_device(device)
    width, overrides = parse_bits(bits or [])
    # What is not given is left to the method, whose defaults differ.
    grid = {"bits": width, "group_size": group_size, "symmetric": symmetric}
    given: dict[str, Any] = {name: value for name, value in grid.items() if value is not None}
    further = _options(option or [])
    if twice := given.keys() & further.keys():
        name = min(twice)
        raise ValueError(f"{name} is given twice, by --option and by an option of its own.")
    chosen, options, saved = choose(method, scheme, format, {**given, **further})
    kind = quantizers.get(chosen)

    def read_text() -> mlcalib.CalibrationSet:
        return read_calibration(
            model,
            languages,
            corpus,
            tokens=tokens if tokens_per_language is None else None,
            tokens_per_language=tokens_per_language,
            seq_len=seq_len,
            seed=seed,
            separator=separator,
            window_bos=window_bos,
            chat_template=chat_template_file or chat_template,
            allow_short=allow_short,
        )

    text = read_text if kind.needs else None
    asked: dict[str, Any] = {
        "method": chosen,
        "quality": quality,
        "propagate": propagate,
        "format": saved,
        "activation_clip": activation_clip,
        "kv_cache": kv_cache,
        "dtype": dtype,
        "device": device,
        "memory": memory,
        "hidden_states": hidden_states,
        "ignore": ignore or (),
        "overrides": overrides,
        **options,
    }
    if plan:
        typer.echo(plan_checkpoint(model, text, ranks=ranks, **asked).table())
        return
    record = mlcalib.quantize_checkpoint(
        model, out, text, ranks=ranks, other_threads=other_threads, progress=ranks.writes, **asked
    )
    typer.echo(summary(record))
    if not ranks.alone:
        typer.echo(f"{ranks.size} ranks; rank 0 sent and received {ranks.traffic / 1e6:,.1f} MB")
    typer.echo(f"written to {out}")


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"--option is '{item}', expected NAME=VALUE, e.g. damp=0.02.")
        options[name] = value
    return options
