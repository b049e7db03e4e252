"""What quantization did to each language."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from mlcalib.calibration_sets import Stream, describe_separator, tokenizer_fingerprint
from mlcalib.errors import named
from mlcalib.evaluation.cache import Cache
from mlcalib.evaluation.fidelity import fidelity_rows
from mlcalib.evaluation.layers import layer_losses
from mlcalib.evaluation.perplexity import DocumentScores, Scores, perplexity_of, score
from mlcalib.evaluation.reference import Reference, fidelity_of, reference_of
from mlcalib.evaluation.scoring import Scorer
from mlcalib.evaluation.subject import Model, Subject
from mlcalib.evaluation.text import eval_text
from mlcalib.languages import LanguageSet, language_set
from mlcalib.results import (
    ItemScores,
    Results,
    Row,
    read_results,
    read_rows,
    versions,
    write_results,
    write_rows,
)
from mlcalib.significance import flips

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Cache",
    "DocumentScores",
    "Reference",
    "Results",
    "Row",
    "Scores",
    "definition",
    "eval_text",
    "evaluate",
    "evaluation_dtype",
    "fidelity_of",
    "fidelity_rows",
    "flips",
    "items_of",
    "layer_losses",
    "perplexity_of",
    "read_results",
    "read_rows",
    "reference_of",
    "rows_of",
    "score",
    "write_results",
    "write_rows",
]


def evaluate(  # noqa: PLR0913 - options of one thing
    models: "Model | Sequence[Model]",
    languages: str | LanguageSet = "multi10",
    corpus: str = "sample",
    *,
    tokens: int = 8192,
    seq_len: int = 512,
    separator: str | None = None,
    dtype: str = "auto",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    fidelity: bool = False,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Results:
    """Measure perplexity, bits per byte and token loss per language, and fidelity to a float model.

    Args:
        models: folders, hub names, GGUF files, what ``mlcalib.quantize`` returned, or transformers
            models.
        languages: as for ``mlcalib.calibration``; shares do not matter here.
        corpus: as for ``mlcalib.calibration``; its eval split is used, which must be plain text.
        tokens: tokens scored per language: the first so many.
        seq_len: context; windows do not overlap.
        separator: what stands between documents, as for ``mlcalib.calibration``.
        dtype: of models that are loaded here; see ``evaluation_dtype``.
        tokenizer: of the transformers models.
        fidelity: also compare the next-token distributions of each model with those of the first,
            in the same forward; see ``fidelity_rows``.
        cache: a folder in which scores are kept as soon as they are there, and found again by
            content of model and text, options and versions; None to keep nothing.
        progress: show a bar.

    Returns:
        Rows with the metrics ``perplexity``, ``bits_per_byte`` and ``token_loss`` (nats); standard
        errors are over documents. With ``fidelity`` also those of the task ``fidelity``. Their
        ``items`` are the documents.

    Raises:
        FileNotFoundError: no such model or text.
        ValueError: too little text in a language; names it. Fidelity of a single model, or of one
            that has other tokens than the first.
    """
    if not isinstance(models, Sequence) or isinstance(models, str):
        models = [models]
    if fidelity and len(models) < 2:
        raise ValueError("Fidelity is to the first of several models; give two or more.")
    dtype = evaluation_dtype(models, dtype)
    subjects = [Subject(model, dtype, tokenizer) for model in models]
    if not isinstance(languages, LanguageSet):
        languages = language_set(languages)
    kept = None if cache is None else Cache(cache)
    scorer = Scorer(tokens=tokens, seq_len=seq_len, fidelity=fidelity, cache=kept)
    texts: dict[str, dict[str, Stream]] = {}  # a tokenizer's fingerprint → language → text
    results = Results()
    codes = languages.weights
    with tqdm(total=len(models) * len(codes), desc="evaluating", disable=not progress) as bar:
        for subject in subjects:
            key = tokenizer_fingerprint(subject.tokenizer)
            if key not in texts:
                texts[key] = eval_text(subject.tokenizer, languages, corpus, separator, tokens)
            origin = (subject.name, subject.method, subject.calibration)
            for code in codes:
                bar.set_postfix_str(f"{subject.method}, {code}")
                with named(f"language '{code}', model {subject.name}"):
                    scores = {code: scorer.scores(subject, code, texts[key][code])}
                results += rows_of(scores, *origin)
                results.items += items_of(scores, *origin)
                if fidelity and subject is not subjects[0]:
                    results += fidelity_rows(scores, scorer.first, *origin)
                bar.update()
            scorer.release(subject)
    return results


def evaluation_dtype(models: "Sequence[Model]", dtype: str = "auto") -> str:
    """Return the dtype that models are evaluated in where ``dtype`` was asked for.

    ``auto`` is bfloat16 on a CPU with AMX, which multiplies it many times faster than float32; so
    only where all models are loaded here, for one that is in memory has a dtype, and models are
    compared in one. Anything else is what it is: ``auto`` as stored, ``float32``, ….
    """
    in_memory = any(not isinstance(model, str | Path) for model in models)
    # torch is pinned, so what it does not call public does not change unseen.
    if dtype == "auto" and not in_memory and torch.cpu._is_amx_tile_supported():
        return "bfloat16"
    return dtype


def rows_of(
    scores: Mapping[str, Scores], model: str, method: str = "float", calibration: str = "none"
) -> list[Row]:
    """Return the results that scores hold: language → scores, as ``perplexity_of`` gives."""
    computed = versions()
    return [
        Row(
            model=model,
            method=method,
            calibration=calibration,
            language=code,
            task="perplexity",
            metric=metric,
            value=value,
            stderr=stderr,
            n=len(found.loss),
            versions=computed,
        )
        for code, found in scores.items()
        for metric in ("perplexity", "bits_per_byte", "token_loss")
        for value, stderr in [getattr(found, metric)]
    ]


def items_of(
    scores: Mapping[str, Scores], model: str, method: str = "float", calibration: str = "none"
) -> list[ItemScores]:
    """Return the documents behind ``rows_of``: loss, and divergence where it was measured."""
    found = []
    for code, each in scores.items():
        loss, tokens, _ = each.by_document()
        of = (model, method, calibration, code)
        found.append(ItemScores(*of, "perplexity", "perplexity", loss, tokens))
        if each.kl is not None:
            found.append(ItemScores(*of, "fidelity", "kl", each.sums(each.kl), tokens))
    return found


def definition(
    tokenizer: "PreTrainedTokenizerBase", *, tokens: int, seq_len: int, separator: str | None
) -> str:
    """Say how perplexity was measured, for people to read below a table."""
    return (
        f"Token perplexity of the first {tokens:,} tokens per language after the first; context "
        f"{seq_len}, stride {seq_len} (no overlap); between documents: "
        f"{describe_separator(tokenizer, separator)}. Standard errors are over documents. Token "
        "perplexity is not comparable between tokenizers or languages; bits per byte is closer to "
        "it."
    )
