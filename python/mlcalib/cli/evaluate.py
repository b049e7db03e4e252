"""``mlcalib evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlcalib.cli.arguments import (
    DTYPE,
    MODEL,
    Corpus,
    Device,
    Languages,
    Separator,
    WindowBos,
    say_device,
    unescape,
)
from mlcalib.cli.benchmarks import (
    Data,
    Generations,
    Limit,
    SentencePiece,
    Tasks,
    benchmark_table,
    check_needs,
    write_generations,
)
from mlcalib.cli.shared import over_ranks

if TYPE_CHECKING:
    from mlcalib.common.ranks import Ranks
    from mlcalib.evaluation import Evaluation


@over_ranks
def evaluate(
    models: Annotated[list[str], typer.Argument(help=f"{MODEL} All are compared with the first.")],
    languages: Languages = "multi10",
    corpus: Corpus = "sample",
    tokens: Annotated[
        int | None,
        typer.Option(
            help="The number of tokens of each language whose loss is measured, from the beginning "
            "of the evaluation text. Default: 8192, or all if there are fewer."
        ),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            help="The number of tokens of each window (the context). Default: 512, or the context "
            "of the models if it is shorter."
        ),
    ] = None,
    separator: Separator = None,
    window_bos: WindowBos = True,
    dtype: Annotated[
        str,
        typer.Option(help=f"{DTYPE} On a CPU with AMX, auto is bfloat16 for all models."),
    ] = "auto",
    device: Device = "auto",
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity",
            help="Also compare the next-token predictions of each model with those of the first: "
            "their KL divergence, its percentiles, how often the most likely token is the same, "
            "and which share of the damage is in few documents.",
        ),
    ] = False,
    llm_int8: Annotated[
        float | None,
        typer.Option(
            help="Also evaluate the first model with LLM.int8() (8-bit weights and activations), "
            "whose outlier channels, with values from this magnitude on (6 in the paper), are "
            "multiplied unrounded; and count them in each language.",
        ),
    ] = None,
    tasks: Tasks = "perplexity",
    data: Data = None,
    limit: Limit = None,
    sentencepiece: SentencePiece = None,
    generations: Generations = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep results in this folder. What is there is not measured again, so a command "
            "that was interrupted continues where it stopped."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the results to this JSONL file, and the score of every item to NAME.items "
            "beside it. 'mlcalib report' turns them into tables and tests."
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Only print what the models take of the device's memory, and how many sequences "
            "run at once.",
        ),
    ] = False,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write the results, beside those of float models, into the model card (README.md) "
            "of each checkpoint that mlcalib made.",
        ),
    ] = False,
    *,
    ranks: "Ranks",
) -> None:
    """Measure what models lose in each language: perplexity, fidelity and benchmark tasks.

    Example: mlcalib evaluate MODEL QUANTIZED --languages multi10 --corpus files:TEXT --fidelity
    --out rows.jsonl
    """
    import mlcalib
    from mlcalib.evaluation import definition, evaluation_dtype, evaluation_seq_len
    from mlcalib.evaluation.batching import plan_evaluation
    from mlcalib.models.device import choose_device
    from mlcalib.models.loading import load_tokenizer
    from mlcalib.report import write_model_card
    from mlcalib.results.rows import write_results

    say_device(device)
    place = choose_device(device)
    if plan:
        computed, length = (
            evaluation_dtype(models, dtype, place),
            evaluation_seq_len(models, seq_len),
        )
        for model in models:
            typer.echo(plan_evaluation(model, computed, place, length))
        return
    if ranks.writes:
        _check_places(out, [cache, generations])
    separator = unescape(separator)
    needing = [name for name, on in (("--fidelity", fidelity), ("--card", card)) if on]
    perplexity = check_needs(tasks, needing=needing)
    carded = _carded(models) if card else []
    given: list[str | mlcalib.LLMInt8] = [*models]
    if llm_int8 is not None:
        given.append(mlcalib.LLMInt8(models[0], llm_int8))
    rows = mlcalib.evaluate(
        given,
        languages,
        corpus,
        tasks=tasks,
        tokens=tokens,
        seq_len=seq_len,
        separator=separator,
        window_bos=window_bos,
        dtype=dtype,
        fidelity=fidelity,
        data=data,
        limit=limit,
        sentencepiece=sentencepiece,
        cache=cache,
        device=device,
        ranks=ranks,
    )
    if not ranks.writes:
        return
    if generations is not None:
        write_generations(rows, generations)
    if out is not None:
        write_results(rows, out)
    if rows.tasks:
        typer.echo("Benchmark tasks ± standard error; shares in per cent\n")
        typer.echo(f"{benchmark_table(rows)}\n")
    if not perplexity:
        return
    how = definition(
        load_tokenizer(models[0]),
        tokens=tokens,
        seq_len=evaluation_seq_len(models, seq_len),
        separator=separator,
        window_bos=window_bos,
    )
    if (computed := evaluation_dtype(models, dtype, place)) != dtype:
        how += f" Computed in {computed} (this CPU has AMX)."
    _echo_tables(rows, models[0], compared=len(given) > 1, fidelity=fidelity, llm_int8=llm_int8)
    typer.echo(f"\n{how}")
    for folder in carded:
        chosen = [
            row
            for row in rows
            if row.task == "perplexity" and (row.model == folder or row.method == "float")
        ]
        write_model_card(folder, chosen, f"{how} Text: the eval split of `{corpus}`.")
        typer.echo(f"written to {folder}/README.md")


def _echo_tables(
    rows: "Evaluation", first: str, *, compared: bool, fidelity: bool, llm_int8: float | None
) -> None:
    from mlcalib.evaluation.fidelity import DEFINITION
    from mlcalib.report import markdown, perplexity_table, rise_table
    from mlcalib.report.tables.fidelity import fidelity_table
    from mlcalib.report.tables.outliers import outlier_table

    typer.echo("Perplexity ± standard error (bits per byte)\n")
    typer.echo(markdown(perplexity_table(rows)))
    if compared:
        typer.echo(f"\nRise in token loss (nats) against {first}\n")
        typer.echo(markdown(rise_table(rows)))
    if fidelity:
        typer.echo(f"\nFidelity to {first}\n")
        typer.echo(markdown(fidelity_table(rows)))
        typer.echo(f"\n{DEFINITION}")
    if llm_int8 is not None:
        typer.echo(f"\nOutlier channels from {llm_int8:g} on, which LLM.int8() leaves unrounded\n")
        typer.echo(markdown(outlier_table(rows)))


def _carded(models: list[str]) -> list[str]:
    """Return the checkpoints that mlcalib made, after checking that their cards can be changed."""
    from mlcalib.checkpoints.card import check_card

    folders = [model for model in models if (Path(model) / "mlcalib.json").is_file()]
    if not folders:
        raise ValueError(
            f"--card: none of {', '.join(models)} is a checkpoint that mlcalib wrote (a folder "
            "with mlcalib.json)."
        )
    for folder in folders:
        check_card(folder)
    return folders


def _check_places(out: Path | None, folders: list[Path | None]) -> None:
    from mlcalib.common.files import check_file, check_folder

    if out is not None:
        check_file(out)
    for folder in filter(None, folders):
        check_folder(folder)
