"""What quantization did to each language."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from mlcalib.calibration_sets import Stream, describe_separator, tokenizer_fingerprint
from mlcalib.errors import named
from mlcalib.evaluation.layers import layer_losses
from mlcalib.evaluation.perplexity import DocumentScores, Scores, perplexity_of, score
from mlcalib.evaluation.text import eval_text
from mlcalib.languages import LanguageSet, language_set
from mlcalib.models.loading import check_source, load_model, load_tokenizer
from mlcalib.quantized_model import QuantizedModel
from mlcalib.results import Row, read_rows, versions, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DocumentScores",
    "Row",
    "Scores",
    "definition",
    "eval_text",
    "evaluate",
    "layer_losses",
    "perplexity_of",
    "read_rows",
    "rows_of",
    "score",
    "write_rows",
]


def evaluate(
    models: "str | Path | QuantizedModel | Sequence[str | Path | QuantizedModel]",
    languages: str | LanguageSet = "multi10",
    corpus: str = "sample",
    *,
    tokens: int = 8192,
    seq_len: int = 512,
    separator: str | None = None,
    dtype: str = "auto",
    progress: bool = True,
) -> list[Row]:
    """Measure perplexity, bits per byte and token loss per language.

    Args:
        models: folders, hub names, GGUF files, or what ``mlcalib.quantize`` returned.
        languages: as for ``mlcalib.calibration``; shares do not matter here.
        corpus: as for ``mlcalib.calibration``; its eval split is used, which must be plain text.
        tokens: tokens scored per language: the first so many.
        seq_len: context; windows do not overlap.
        separator: what stands between documents, as for ``mlcalib.calibration``.
        dtype: of models that are loaded here.
        progress: show a bar.

    Returns:
        Rows with the metrics ``perplexity``, ``bits_per_byte`` and ``token_loss`` (nats); standard
        errors are over documents.

    Raises:
        FileNotFoundError: no such model or text.
        ValueError: too little text in a language; names it.
    """
    if isinstance(models, str | Path | QuantizedModel):
        models = [models]
    for model in models:
        if not isinstance(model, QuantizedModel):
            check_source(str(model))
    if not isinstance(languages, LanguageSet):
        languages = language_set(languages)
    texts: dict[str, dict[str, Stream]] = {}  # a tokenizer's fingerprint → language → text
    rows: list[Row] = []
    codes = languages.weights
    with tqdm(total=len(models) * len(codes), desc="evaluating", disable=not progress) as bar:
        for model in models:
            if isinstance(model, QuantizedModel):
                live, tokenizer, name = model.model, model.tokenizer, model.recipe["model"]
            else:
                name = str(model)
                live, tokenizer = load_model(name, dtype), load_tokenizer(name)
            method, calibration = _origin(model)
            key = tokenizer_fingerprint(tokenizer)
            if key not in texts:
                texts[key] = eval_text(tokenizer, languages, corpus, separator, tokens)
            for code in codes:
                bar.set_postfix_str(f"{method}, {code}")
                with named(f"language '{code}', model {name}"):
                    scores = score(live, texts[key][code], tokens=tokens, seq_len=seq_len)
                rows += rows_of({code: scores}, name, method, calibration)
                bar.update()
    return rows


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


def _origin(model: str | Path | QuantizedModel) -> tuple[str, str]:
    """Return the method and calibration of a model: from its ``mlcalib.json``, if it has one."""
    if isinstance(model, QuantizedModel):
        calibration = model.calibration
        return model.recipe["method"], "none" if calibration is None else calibration.set_name
    record = Path(model) / "mlcalib.json"
    if not record.is_file():
        return "float", "none"
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        calibration = content["calibration"]
        return content["recipe"]["method"], "none" if calibration is None else calibration["set"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{record} is not a record that mlcalib wrote ({type(error).__name__}: {error}); "
            "restore it, or remove it to evaluate the folder as any model."
        ) from error
