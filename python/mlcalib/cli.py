"""The command line."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    help="Quantize multilingual language models with language-diverse calibration, and see per "
    "language what it cost.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)

MODEL = "A folder with safetensors, a hub name, or a GGUF file."
LANGUAGES = (
    "A set (multi10, multi, aya23 …), languages (en,sw) or shares (en:0.7,sw:0.3). The command "
    "languages lists them."
)
CORPUS = (
    "sample (about 100 machine-written sentences per language, for demonstration only); "
    "files:PATH with LANG/{calib,eval}.txt, .jsonl or .parquet; c4, wikipedia or hub:NAME, "
    "streamed from the Hugging Face hub; or translated:MODEL?source=en&corpus=CORPUS, another "
    "corpus translated by an NLLB, M2M100 or MADLAD-400 model."
)
SEPARATOR = (
    "What stands between documents: eos, bos or a text (\\n is a newline). Default: what the "
    "tokenizer adds by itself."
)
DTYPE = "auto (as stored; float32 for GGUF), float32, bfloat16 or float16."

Languages = Annotated[str, typer.Option(help=LANGUAGES)]
Corpus = Annotated[str, typer.Option(help=CORPUS)]
SeqLen = Annotated[int, typer.Option(help="Tokens of a sequence, the context.")]
Separator = Annotated[str | None, typer.Option(help=SEPARATOR)]
Dtype = Annotated[str, typer.Option(help=DTYPE)]


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help=MODEL)],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    method: Annotated[
        str, typer.Option(help="gptq, awq, rtn (which needs no text), or a plug-in.")
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
        str, typer.Option(help="compressed-tensors (packed) or dense (dequantized weights).")
    ] = "compressed-tensors",
    dtype: Dtype = "auto",
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
    from mlcalib.files import check_output
    from mlcalib.overrides import parse_bits
    from mlcalib.quantizers import quantizers

    check_output(out)
    further = _options(option or [])
    width, overrides = parse_bits(bits or [])
    calibration = None
    if quantizers.get(method).needs:
        calibration = mlcalib.calibration(
            model,
            languages,
            corpus,
            tokens=tokens,
            seq_len=seq_len,
            seed=seed,
            separator=_unescape(separator),
            chat_template=chat_template_file or chat_template,
            allow_short=allow_short,
        )
        typer.echo(calibration.table())
        typer.echo(f"separator: {calibration.separator}")
    quantized = mlcalib.quantize(
        model,
        calibration,
        method=method,
        propagate=propagate,  # type: ignore[arg-type]  # checked there
        format=format,
        dtype=dtype,
        skip=skip or (),
        overrides=overrides,
        bits=width,
        group_size=group_size,
        symmetric=symmetric,
        **further,
    )
    quantized.save(out, format)
    typer.echo(quantized.summary())
    typer.echo(f"written to {out}")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help=f"{MODEL} The first is compared against.")],
    languages: Languages = "multi10",
    corpus: Corpus = "sample",
    tokens: Annotated[
        int, typer.Option(help="Scored tokens per language, the first of the eval split.")
    ] = 8192,
    seq_len: SeqLen = 512,
    separator: Separator = None,
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the rows to this JSONL file.")] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Put the results, with those of float models beside them, into the model card "
            "(README.md) of each checkpoint that mlcalib wrote.",
        ),
    ] = False,
) -> None:
    """Measure perplexity and bits per byte per language."""
    import mlcalib
    from mlcalib.evaluation import definition
    from mlcalib.models.loading import load_tokenizer
    from mlcalib.report import markdown, perplexity_table, rise_table, write_model_card
    from mlcalib.results import write_rows

    separator = _unescape(separator)
    carded = _carded(models) if card else []
    rows = mlcalib.evaluate(
        models,
        languages,
        corpus,
        tokens=tokens,
        seq_len=seq_len,
        separator=separator,
        dtype=dtype,
    )
    if out is not None:
        write_rows(rows, out)
    typer.echo("Perplexity ± standard error (bits per byte)\n")
    typer.echo(markdown(perplexity_table(rows)))
    if len(models) > 1:
        typer.echo(f"\nRise in token loss (nats) against {models[0]}\n")
        typer.echo(markdown(rise_table(rows)))
    how = definition(load_tokenizer(models[0]), tokens=tokens, seq_len=seq_len, separator=separator)
    typer.echo(f"\n{how}")
    for folder in carded:
        chosen = [row for row in rows if row.model == folder or row.method == "float"]
        write_model_card(folder, chosen, f"{how} Text: the eval split of `{corpus}`.")
        typer.echo(f"written to {folder}/README.md")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")] = Path("demo"),
) -> None:
    """Quantize SmolLM2-135M with English and with ten languages, and compare per language."""
    from mlcalib.demo import run

    run(out, echo=typer.echo)


@app.command()
def languages(
    of: Annotated[
        str | None,
        typer.Argument(metavar="SET", help="Only those of a set (multi10) or a list (en,sw)."),
    ] = None,
) -> None:
    """List the languages, and which benchmarks have them.

    Tier: from 0, hardly any text, to 5 (Joshi et al. 2020). Tab-separated where it is piped.

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


@app.command()
def info() -> None:
    """Print versions, instruction sets, and what is available."""
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


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"--option is '{item}', expected NAME=VALUE, e.g. damp=0.02.")
        options[name] = value
    return options


def _carded(models: list[str]) -> list[str]:
    """Return the checkpoints that mlcalib wrote, after a look at their cards."""
    from mlcalib.model_card import check_card

    folders = [model for model in models if (Path(model) / "mlcalib.json").is_file()]
    if not folders:
        raise ValueError(
            f"--card: none of {', '.join(models)} is a checkpoint that mlcalib wrote (a folder "
            "with mlcalib.json)."
        )
    for folder in folders:
        check_card(folder)
    return folders


def _unescape(separator: str | None) -> str | None:
    return None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")


def main() -> None:
    """Run; errors that a user can mend are printed without a traceback (MLCALIB_TRACEBACK=1)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except (ValueError, OSError, NotImplementedError, ImportError, ArithmeticError) as error:
        _fail(error)
    except RuntimeError as error:  # torch's LinAlgError is one
        _fail(error)


def _fail(error: Exception) -> None:
    if os.environ.get("MLCALIB_TRACEBACK"):
        raise error
    console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", soft_wrap=True)
    sys.exit(1)
