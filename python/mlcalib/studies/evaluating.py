"""Evaluate the float model and every checkpoint of a study; what is done is not done again."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from mlcalib.calibration_sets import Stream
from mlcalib.evaluation import Scores, definition, eval_text, perplexity_of, rows_of
from mlcalib.evaluation.tasks import run_tasks
from mlcalib.files import atomic_file
from mlcalib.languages import language_set
from mlcalib.models.loading import load_model
from mlcalib.safetensors_files import read_json
from mlcalib.studies.run import ModelStudy, model_path
from mlcalib.studies.spec import EvaluationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate_model(study: ModelStudy, name: str, *, progress: bool) -> None:
    """Evaluate the float model and its finished checkpoints.

    Args:
        study: a study on one model.
        name: of the model, as the study spells it.
        progress: show a bar.

    Raises:
        FileNotFoundError, ValueError: see ``mlcalib.evaluate``.
    """
    spec = study.spec
    if spec.evaluation is None:
        return
    corpus = spec.evaluation.corpus or spec.corpus
    tokens = spec.evaluation.tokens
    texts: dict[str, Stream] = {}
    if "perplexity" in spec.evaluation.tasks:
        languages = spec.evaluation.languages
        texts = eval_text(study.tokenizer, languages, corpus, spec.separator, tokens)
    inputs = _inputs(study, spec.evaluation, texts)
    models = {"float": Path(model_path(name))}
    models |= {each: study.checkpoint(each) for each in study.variants if study.finished(each)}
    for variant, path in tqdm(models.items(), desc="evaluating", disable=not progress):
        file = study.folder / "evaluations" / f"{variant}.json"
        wanted = inputs | {"checkpoint": _checkpoint(study, variant)}
        if file.is_file() and read_json(file).get("inputs") == wanted:
            continue
        whole = path / "model.gguf"
        model = load_model(str(whole if whole.is_file() else path), spec.dtype)
        found = _evaluate(study, spec.evaluation, variant, model, texts, name)
        with atomic_file(file) as opened:
            json.dump(found | {"inputs": wanted}, opened, ensure_ascii=False, allow_nan=False)


def described(study: ModelStudy) -> dict[str, Any]:
    """Return what ``study.json`` says of the evaluation."""
    spec = study.spec.evaluation
    if spec is None:
        return {}
    how = definition(
        study.tokenizer,
        tokens=spec.tokens,
        seq_len=study.spec.seq_len,
        separator=study.spec.separator,
    )
    return {
        "tasks": list(spec.tasks),
        "languages": list(language_set(spec.languages).weights),
        "tokens": spec.tokens,
        "seq_len": study.spec.seq_len,
        "definition": how,
    }


def _evaluate(
    study: ModelStudy,
    spec: EvaluationSpec,
    variant: str,
    model: "PreTrainedModel",
    texts: Mapping[str, Stream],
    name: str,
) -> dict[str, Any]:
    """Return what ``evaluations/VARIANT.json`` holds."""
    start = time.perf_counter()
    known = study.variants.get(variant)
    method = known.method if known else "float"
    calibration = (known.setting if known else None) or "none"
    found: dict[str, Any] = {"variant": variant, "rows": [], "documents": {}}
    if "perplexity" in spec.tasks:
        scores: dict[str, Scores] = {}
        for code, text in texts.items():
            short = study.spec.allow_short
            count = min(spec.tokens, len(text.ids) - 1) if short else spec.tokens
            seq_len = study.spec.seq_len
            scores |= perplexity_of(model, {code: text}, tokens=count, seq_len=seq_len)
        found["rows"] = rows_of(scores, name, method, calibration)
        found["documents"] = {code: each.by_document()._asdict() for code, each in scores.items()}
    if others := [task for task in spec.tasks if task != "perplexity"]:
        results = run_tasks(
            model,
            study.tokenizer,
            others,
            list(language_set(spec.languages).weights),
            data=spec.data,
            limit=spec.limit,
            seed=study.spec.seed,
            name=name,
            method=method,
            calibration=calibration,
            progress=False,
        )
        found["rows"] += results.rows
        found["items"] = results.items
        found["missing"] = [asdict(each) for each in results.missing]
    found["rows"] = [asdict(row) for row in found["rows"]]
    return found | {"seconds": time.perf_counter() - start}


def _inputs(study: ModelStudy, spec: EvaluationSpec, texts: Mapping[str, Stream]) -> dict[str, Any]:
    """Return what decides an evaluation beside the checkpoint; JSON types."""
    sums = {
        code: hashlib.sha256(text.ids.numpy().tobytes()).hexdigest() for code, text in texts.items()
    }
    asked = spec.model_dump(mode="json")
    return {**asked, "seq_len": study.spec.seq_len, "text": sums, "model": study.source.fingerprint}


def _checkpoint(study: ModelStudy, variant: str) -> Any:
    manifest = study.folder / "parts" / variant / "manifest.json"
    return read_json(manifest) if manifest.is_file() else None
