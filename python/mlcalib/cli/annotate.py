"""``mlcalib annotate``."""

from pathlib import Path
from typing import Annotated

import typer

from mlcalib.cli.arguments import Dtype
from mlcalib.cli.generate import PROMPTS, BatchSize, Languages, Limit, MaxTokens


def annotate(
    files: Annotated[
        list[str],
        typer.Argument(
            help="The answers of two models (JSONL). With --prompts, the two models themselves. "
            "With --score, the files that raters sent back."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write, NAME.html. Its key, NAME.key.json, is written beside it and "
            "is not for raters. With --score, the JSON file for the result."
        ),
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Count what raters sent back.")] = False,
    key: Annotated[
        Path | None, typer.Option(help="With --score, the NAME.key.json of the page.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help=f"First let the two models answer these prompts. {PROMPTS}"),
    ] = None,
    languages: Languages = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="The seed of everything that is random.")] = 0,
    question: Annotated[
        str, typer.Option(help="The question that raters are asked.")
    ] = "Which answer is better?",
    max_tokens: MaxTokens = 256,
    batch_size: BatchSize = 1,
    dtype: Dtype = "auto",
    rows: Annotated[
        Path | None,
        typer.Option(
            help="With --score, write the win rates as rows of results to this JSONL file."
        ),
    ] = None,
) -> None:
    """Write a web page on which people compare the answers of two models, or count their ratings.

    The page does not say which model wrote which answer.

    Example: mlcalib annotate float.jsonl gptq.jsonl --out rate.html; and when raters have sent
    their files: mlcalib annotate --score ratings-*.json --key rate.key.json
    """
    from mlcalib.judging import (
        generate,
        pair,
        read_generations,
        read_prompts,
        read_source,
        write_page,
    )

    if score:
        _score(files, key, out, rows)
        return
    if key is not None or rows is not None:
        given = "--key" if key is not None else "--rows"
        raise ValueError(f"{given} is given without --score.")
    if out is None or out.suffix != ".html":
        raise ValueError(f"--out is {out}, expected the page to write, NAME.html.")
    if len(files) != 2:
        raise ValueError(f"{len(files)} were given to compare; give two: FIRST SECOND.")
    if prompts is not None:
        wanted = read_prompts(prompts, languages, limit=limit, seed=seed)
        models, folder = files, out.with_suffix(".generations")
        files = [str(folder / f"{place}.jsonl") for place in ("first", "second")]
        for model, path in zip(models, files, strict=True):
            generate(model, wanted, path, max_tokens=max_tokens, batch_size=batch_size, dtype=dtype)
    first, second = files
    pairs = pair(read_generations(first), read_generations(second))
    sources = read_source(first), read_source(second)
    key_path = write_page(pairs, out, sources, question=question, seed=seed)
    typer.echo(
        f"{len(pairs):,} pairs in {out}; send it to raters.\n{key_path} tells whose the answers "
        f"are; keep it.\nThen: mlcalib annotate --score FILE… --key {key_path}"
    )


def _score(files: list[str], key_path: Path | None, out: Path | None, rows: Path | None) -> None:
    from mlcalib.judging import DEFINITION, left_share, read_key, read_ratings, score_ratings
    from mlcalib.judging.tables import rating_table, win_rate_rows, write_json
    from mlcalib.report import markdown
    from mlcalib.results.rows import write_rows

    if key_path is None:
        raise ValueError("--score needs --key, the NAME.key.json that was written with the page.")
    key = read_key(key_path)
    ratings = read_ratings(files, key)
    if not ratings:
        raise ValueError("Nothing was rated in the files that were given.")
    scores, left = score_ratings(ratings), left_share(ratings)
    first, second = key.models
    typer.echo(f"Win rate of {second} over {first}, as rated by people\n")
    typer.echo(markdown(rating_table(scores)))
    typer.echo(
        f"\n{DEFINITION}\nalpha: Krippendorff's, nominal, over the items that two raters or more "
        "gave a verdict on."
    )
    if left is not None:
        share, low, high, n = left
        typer.echo(
            f"Position: the answer on the left won {100 * share:.1f} % [{100 * low:.1f}, "
            f"{100 * high:.1f}] of the {n} ratings that were no tie (50 % without bias)."
        )
    if rows is not None:
        rates = {code: each.win_rate for code, each in scores.items()}
        write_rows(win_rate_rows(rates, second, "rated"), rows)
    if out is not None:
        write_json(
            out,
            {"first": first, "second": second, "fingerprint": key.fingerprint, "scores": scores,
             "left_share": left},
        )  # fmt: skip
