"""Evaluates the float model and every checkpoint of a study, without repeating what is done."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mlcalib.calibration_sets import Stream, describe_windows
from mlcalib.common.files import atomic_file
from mlcalib.common.progress import progress_bar
from mlcalib.common.ranks import Ranks
from mlcalib.common.safetensors_read import read_json
from mlcalib.evaluation import (
    Cache,
    Scorer,
    Scores,
    Subject,
    definition,
    eval_text,
    fidelity_rows,
    rows_of,
)
from mlcalib.evaluation.outliers import outlier_rows, outliers_of
from mlcalib.evaluation.scorer import STATES
from mlcalib.evaluation.sharing import measure_together
from mlcalib.evaluation.subject import LLM_INT8
from mlcalib.evaluation.tasks import PERPLEXITY, check_data
from mlcalib.evaluation.tasks.kept import run_subject
from mlcalib.formats import find_file
from mlcalib.languages import language_set
from mlcalib.models.device import choose_device, own_device
from mlcalib.models.llm_int8 import LLMInt8
from mlcalib.studies.grid import FLOAT
from mlcalib.studies.run import ModelStudy, model_path
from mlcalib.studies.spec import EvaluationSpec, StudySpec


def check_evaluation(spec: StudySpec) -> None:
    """Check, before anything is quantized, that benchmark tasks have the data that they need.

    Raises:
        FileNotFoundError, ImportError: see ``mlcalib.evaluate``.
    """
    if (asked := spec.evaluation) is not None:
        check_data(_benchmarks(asked), list(language_set(asked.languages).weights), asked.data)


def evaluate_model(study: ModelStudy, name: str, ranks: Ranks, *, progress: bool) -> None:
    """Evaluate the float model and its finished checkpoints; collective.

    Scores are kept under ``scores`` as soon as they are known. So another task or language, or a
    run after an interruption, costs only what is new. With fidelity the hidden states of the float
    model are kept there too, until all checkpoints have been compared with them.

    Args:
        study: a study on one model.
        name: the name of the model in the study.
        ranks: the processes of the run, which all see the study's folder.
        progress: whether to show a progress bar.

    Raises:
        FileNotFoundError, ValueError: see ``mlcalib.evaluate``.
    """
    spec = study.spec.evaluation
    if spec is None:
        return
    texts: dict[str, Stream] = {}
    if PERPLEXITY in spec.tasks:
        corpus = spec.corpus or study.spec.corpus
        texts = eval_text(
            study.tokenizer,
            spec.languages,
            corpus,
            study.spec.separator,
            spec.tokens,
            window_bos=study.spec.window_bos,
        )
    models = {each: Path(model_path(name)) for each in (FLOAT, *study.thresholds)}
    models |= {each: study.checkpoint(each) for each in study.variants if study.finished(each)}
    todo = ranks.of_first(_todo(study, spec, texts, models) if ranks.writes else {})
    windows = describe_windows(study.tokenizer, study.spec.window_bos)
    cache = Cache(study.folder / "scores")
    scoring = partial(
        Scorer,
        tokens=spec.tokens,
        seq_len=study.spec.seq_len,
        fidelity=spec.fidelity,
        allow_short=study.spec.allow_short,
        cache=cache,
    )
    # The others are compared with the float model, which comes first.
    needed = [each for each in models if each in todo or (each == FLOAT and todo and spec.fidelity)]
    subjects = {each: _subject(study, each, models[each], ranks) for each in needed}
    if not ranks.alone:
        measure_together(
            list(subjects.values()),
            lambda _: texts,
            scoring(),
            cache,
            _benchmarks(spec),
            list(language_set(spec.languages).weights),
            ranks,
            **_benchmark_options(study, spec),
        )
        if not ranks.writes:
            ranks.wait()
            return
    scorer = scoring()
    for variant, subject in progress_bar(subjects.items(), desc="evaluating", disable=not progress):
        start = time.perf_counter()
        scores = dict(scorer.scores(subject, texts))
        if variant in todo:
            origin = _origin(study, name, variant)
            found = _content(origin, windows, scores, scorer.first if variant != FLOAT else {})
            if variant in study.thresholds:
                length = {"seq_len": study.spec.seq_len, "tokens": spec.tokens}
                rows = outlier_rows(outliers_of(subject.model, texts, **length), *origin, windows)
                found["rows"] += [row.record() for row in rows]
            if _benchmarks(spec):
                _add_benchmarks(study, spec, variant, subject, cache, origin, found)
            found |= {"variant": variant, "seconds": time.perf_counter() - start}
            with atomic_file(evaluation_file(study, variant)) as opened:
                content = found | {"inputs": todo[variant]}
                json.dump(content, opened, ensure_ascii=False, allow_nan=False)
        scorer.release(subject)
    ranks.wait()
    cache.drop(STATES)


def _todo(
    study: ModelStudy, spec: EvaluationSpec, texts: Mapping[str, Stream], models: Mapping[str, Path]
) -> dict[str, Any]:
    """Return variant → what decides its evaluation, of those that are not evaluated so."""
    inputs = _inputs(study, spec, texts)
    todo = {}
    for variant in models:
        wanted = inputs | {"checkpoint": _checkpoint(study, variant)}
        file = evaluation_file(study, variant)
        if not file.is_file() or read_json(file).get("inputs") != wanted:
            todo[variant] = wanted
    return todo


def _subject(study: ModelStudy, variant: str, path: Path, ranks: Ranks) -> Subject:
    threshold = study.thresholds.get(variant)
    whole = find_file(path)
    device = choose_device(own_device(study.spec.device, ranks))
    source = path if whole is None else whole[1]
    given = source if threshold is None else LLMInt8(source, threshold)
    return Subject(given, study.spec.dtype, device=device)


def _benchmark_options(study: ModelStudy, spec: EvaluationSpec) -> dict[str, Any]:
    return {"data": spec.data, "limit": spec.limit, "seed": study.spec.seed}


def described(study: ModelStudy) -> dict[str, Any]:
    """Return what ``study.json`` says about the evaluation."""
    spec = study.spec.evaluation
    if spec is None:
        return {}
    how = definition(
        study.tokenizer,
        tokens=spec.tokens,
        seq_len=study.spec.seq_len,
        separator=study.spec.separator,
        window_bos=study.spec.window_bos,
    )
    return {
        "tasks": list(spec.tasks),
        "languages": list(language_set(spec.languages).weights),
        "tokens": spec.tokens,
        "seq_len": study.spec.seq_len,
        "definition": how,
    }


def evaluation_file(study: ModelStudy, variant: str) -> Path:
    """Return the path of the evaluation of a variant."""
    return study.folder / "evaluations" / f"{variant}.json"


def _benchmarks(spec: EvaluationSpec) -> list[str]:
    return [task for task in spec.tasks if task != PERPLEXITY]


def _origin(study: ModelStudy, name: str, variant: str) -> tuple[str, str, str]:
    """Return model, method and calibration as rows call them."""
    known = study.variants.get(variant)
    if known is None:  # the float model, and ways to run it
        return name, variant, "none"
    return name, known.quantizer, known.setting or "none"


def _content(
    origin: tuple[str, str, str],
    windows: str,
    scores: Mapping[str, Scores],
    reference: Mapping[str, Scores],
) -> dict[str, Any]:
    """Return what an evaluation file holds of running text; without a reference no fidelity."""
    rows = rows_of(scores, *origin, windows)
    if reference:
        rows += fidelity_rows(scores, reference, *origin, windows)
    documents = {code: each.by_document()._asdict() for code, each in scores.items()}
    divergence = {code: each.sums(each.kl) for code, each in scores.items() if each.kl is not None}
    return {
        "rows": [row.record() for row in rows],
        "documents": documents,
        "divergence": divergence,
    }


def _add_benchmarks(
    study: ModelStudy,
    spec: EvaluationSpec,
    variant: str,
    subject: Subject,
    cache: Cache,
    origin: tuple[str, str, str],
    found: dict[str, Any],
) -> None:
    """Run the benchmark tasks; add their rows, items and missing cells to an evaluation."""
    name, method, calibration = origin
    results = run_subject(
        subject,
        cache,
        _benchmarks(spec),
        list(language_set(spec.languages).weights),
        **_benchmark_options(study, spec),
        name=name,
        method=method,
        calibration=calibration,
        progress=False,
    )
    results.write_generations(study.folder / "generations" / variant)
    found["rows"] += [row.record() for row in results.rows]
    found["items"] = results.items
    found["missing"] = [asdict(each) for each in results.missing]


def _inputs(study: ModelStudy, spec: EvaluationSpec, texts: Mapping[str, Stream]) -> dict[str, Any]:
    """Return what decides an evaluation beside the checkpoint; JSON types."""
    sums = {
        code: hashlib.sha256(text.ids.numpy().tobytes()).hexdigest() for code, text in texts.items()
    }
    asked = spec.model_dump(mode="json")
    begin = {code: list(text.begin) for code, text in texts.items() if text.begin}
    asked |= {"begin": begin} if begin else {}
    return {**asked, "seq_len": study.spec.seq_len, "text": sums, "model": study.called}


def _checkpoint(study: ModelStudy, variant: str) -> Any:
    """Return what was quantized how; None for the float model."""
    if (threshold := study.thresholds.get(variant)) is not None:
        return {LLM_INT8: threshold}
    manifest = study.folder / "parts" / variant / "manifest.json"
    return read_json(manifest) if manifest.is_file() else None
