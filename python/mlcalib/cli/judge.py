"""``mlcalib judge``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlcalib.cli.arguments import Device, Dtype, say_device

if TYPE_CHECKING:
    from mlcalib.judging import Judge, PositionBias


def judge(
    first: Annotated[Path, typer.Argument(help="The answers of the first model (JSONL).")],
    second: Annotated[
        Path, typer.Argument(help="The answers of the model that is compared with it.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="The judge: the folder or hub name of a causal language model, or of a reward "
            "model (a sequence classifier with one label). With --url it is the name of the model "
            "on that server."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The JSONL file for the judgements. If it exists, the missing ones are added."
        ),
    ],
    url: Annotated[
        str | None,
        typer.Option(help="Ask an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1."),
    ] = None,
    key: Annotated[
        str, typer.Option(help="The environment variable that holds the server's API key.")
    ] = "OPENAI_API_KEY",
    template: Annotated[
        Path | None,
        typer.Option(
            help="A file with your own question to a language model, which contains {prompt}, "
            "{first}, {second} and perhaps {language}. It must ask for the letter A, B or C "
            "(neither)."
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(help="Rewards of a reward model that differ by no more than this are a tie."),
    ] = 0.0,
    max_tokens: Annotated[
        int,
        typer.Option(
            help="The largest number of tokens in a server's reply. Models that think first need "
            "more."
        ),
    ] = 16,
    retries: Annotated[
        int,
        typer.Option(help="How often a question is asked again when the connection fails."),
    ] = 5,
    workers: Annotated[
        int, typer.Option(help="How many questions are sent to a server at the same time.")
    ] = 4,
    dtype: Dtype = "auto",
    device: Device = "auto",
    table: Annotated[
        Path | None, typer.Option(help="Write the win rates to this JSON file.")
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Write the win rates as rows of results to this JSONL file."),
    ] = None,
) -> None:
    """Let a language model or a reward model say which of two models answers better.

    A language model is asked about each pair of answers twice, in both orders.

    Example: mlcalib judge float.jsonl gptq.jsonl --model JUDGE --out judgements.jsonl
    """
    from mlcalib.judging import (
        DEFINITION,
        LanguageModelJudge,
        RewardModelJudge,
        UrlJudge,
        is_reward_model,
        judged_win_rates,
        pair,
        position_bias,
        read_generations,
        read_source,
        read_template,
    )
    from mlcalib.judging import judge as run
    from mlcalib.judging.tables import win_rate_rows, win_rate_table, write_json
    from mlcalib.report import markdown
    from mlcalib.results.rows import write_rows

    pairs = pair(read_generations(first), read_generations(second))
    question = read_template(template)
    by: Judge
    if url is not None:
        by = UrlJudge(
            url, model, question, key=key, max_tokens=max_tokens, retries=retries, workers=workers
        )
    elif is_reward_model(model):
        if template is not None:
            raise ValueError(f"{model} is a reward model, which reads no --template; leave it out.")
        say_device(device)
        by = RewardModelJudge(model, margin, dtype, device)
    else:
        say_device(device)
        by = LanguageModelJudge(model, question, dtype, device)
    if margin and not isinstance(by, RewardModelJudge):
        raise ValueError(
            "--margin is only for reward models, and this judge is not one; leave it out."
        )
    judgements = run(pairs, by, out)
    rates, bias = judged_win_rates(judgements), position_bias(judgements)
    sources = read_source(first), read_source(second)
    typer.echo(f"Win rate of {sources[1]} over {sources[0]}, judged by {model}\n")
    typer.echo(markdown(win_rate_table(rates)))
    typer.echo(f"\n{DEFINITION}")
    unclear = sum(each.letter is None for each in judgements)
    typer.echo(_order(bias, by))
    if unclear:
        typer.echo(
            f"{unclear} of {len(judgements)} replies named none of A, B and C, and count in "
            f"nothing above; they are in {out}."
        )
    if rows is not None:
        write_rows(win_rate_rows(rates, sources[1], "judged"), rows)
    if table is not None:
        write_json(
            table,
            {"first": sources[0], "second": sources[1], "judge": by.identity,
             "win_rates": rates, "position_bias": bias, "unclear": unclear},
        )  # fmt: skip


def _order(bias: "PositionBias | None", by: "Judge") -> str:
    if not by.reads_both:
        return "Position: the judge reads one answer at a time, so order cannot matter."
    if bias is None:
        return "Position: no pair has an opinion in both orders."
    return (
        f"Position: {bias.same} of {bias.both} pairs got the same verdict in both orders; the "
        f"answer shown first won {100 * bias.shown_first:.1f} % "
        f"[{100 * bias.low:.1f}, {100 * bias.high:.1f}] of the {bias.decided} opinions that were "
        "no tie (50 % without bias)."
    )
