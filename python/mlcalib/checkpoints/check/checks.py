"""Everything that can be told of a checkpoint without a model, a pickle or remote code."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlcalib.checkpoints import open_checkpoint
from mlcalib.checkpoints.check.report import Finding, Report
from mlcalib.checkpoints.check.tensors import (
    LOST_HEAD,
    check_names,
    check_values,
    linear_names,
    shapes_of,
)
from mlcalib.checkpoints.config_check import check_config, known_family
from mlcalib.checkpoints.expected import check_model
from mlcalib.checkpoints.stored_weights import StoredWeights
from mlcalib.common.errors import CannotReadError
from mlcalib.common.safetensors_read import ADAPTER, read_json, validate_folder
from mlcalib.formats import (
    READERS,
    Facts,
    Kind,
    Problem,
    Verdict,
    Verdicts,
    as_written,
    cannot_tell,
    find_file,
    find_format,
    formats,
    ordinary,
    stored_section,
)

_MAX_CONFIG = 16 * 2**20


def check(path: str | Path) -> Report:
    """Check a checkpoint of any tool: whole, as its config says, and for which readers.

    Headers are read before tensors, and tensors one at a time: memory is bounded by the largest.
    Nothing is unpickled, and no code of the checkpoint runs.

    Args:
        path: a folder in the Hugging Face layout, one with a GGUF file, or a GGUF file.
    """
    path = Path(path)
    problems: list[Problem] = []
    facts, place = Facts(), ""
    try:
        if (found := find_file(path)) is not None:
            form, file = found
            facts, told = form.check_file(file)
            problems += told
        else:
            facts, place = _inspect(path, problems)
    except (CannotReadError, NotImplementedError) as error:
        problems.append(("unread", str(error)))
    except (ValueError, OSError) as error:
        problems.append(("damaged", str(error)))
    return _report(path, facts, place, problems)


def _report(path: Path, facts: Facts, place: str, problems: Sequence[Problem]) -> Report:
    findings = [Finding(kind, message) for kind, message in problems if kind != "note"]
    notes = tuple(message for kind, message in problems if kind == "note")
    kinds = {finding.kind for finding in findings}
    if "damaged" in kinds:
        readers = dict.fromkeys(READERS, Verdict(False, ("see what is damaged",)))
    else:
        readers = _readers(facts, place, findings, undescribed="unread" in kinds)
        findings += _refusals(facts, readers)
    findings.sort(key=lambda finding: ("damaged", "unread", "refused").index(finding.kind))
    layout = _layout(facts)
    return Report(str(path), layout, len(facts.specs), tuple(findings), readers, notes)


def _readers(
    facts: Facts, place: str, findings: Sequence[Finding], *, undescribed: bool
) -> Verdicts:
    """Return what each reader makes of a checkpoint that is whole.

    Args:
        facts: of the checkpoint.
        place: the file that its section stands in.
        findings: what is known of single readers.
        undescribed: whether there is something in it that mlcalib cannot read, so that without a
            section it cannot tell about readers.
    """
    try:
        readers = verdicts(facts)
    except CannotReadError as error:
        return dict.fromkeys(READERS, Verdict(None, (str(error),)))
    if undescribed and not facts.section:
        unknown = "mlcalib cannot read it, and cannot tell whether it has a class for it"
        readers |= dict.fromkeys(list(READERS)[:3], Verdict(None, (unknown,)))
    if facts.section and place not in ("", "config.json"):
        reason = f"it looks for quantization_config in config.json, which here is in {place}"
        readers["transformers"] = Verdict(False, (reason,))
        for reader in ("vLLM", "SGLang"):
            if readers[reader].loads:
                option = f"with --quantization {facts.section['quant_method']}"
                readers[reader] = replace(
                    readers[reader], reasons=(option, *readers[reader].reasons)
                )
    for reader in READERS:
        if any(each.kind == "refused" and reader in each.message for each in findings):
            readers[reader] = Verdict(False, ("see what it refuses",))
    return readers


def _refusals(facts: Facts, readers: Verdicts) -> list[Finding]:
    """Return what readers refuse; that llama.cpp reads no folders is no news."""
    named: dict[tuple[str, ...], list[str]] = {}
    for reader, verdict in readers.items():
        known = verdict.reasons == ("see what it refuses",) or (
            reader == "llama.cpp" and facts.section.get("quant_method") != "gguf"
        )
        if verdict.loads is False and not known:
            named.setdefault(verdict.reasons, []).append(f"{reader} {READERS[reader]}")
    return [
        Finding("refused", f"{', '.join(who)}: {'; '.join(reasons)}")
        for reasons, who in named.items()
    ]


def verdicts(facts: Facts) -> Verdicts:
    """Return what each reader makes of a checkpoint, by its ``quantization_config``.

    Raises:
        CannotReadError: it describes a variant that cannot be read.
    """
    if not facts.section:
        return ordinary()
    form = find_format(facts.section)
    return cannot_tell(_layout(facts)) if form is None else form.verdicts(facts)


def _layout(facts: Facts) -> str:
    """Return the quant_method, with what else tells layouts apart; "" for none."""
    method = str(facts.section.get("quant_method", ""))
    return formats.get(method).layout(facts.section) if method in formats.names() else method


def _inspect(folder: Path, problems: list[Problem]) -> tuple[Facts, str]:
    """Return what is known and which file says how it is quantized; add problems on the way.

    Raises:
        ValueError: nothing more can be told.
    """
    config = _config(folder)
    shapes = shapes_of(validate_folder(folder))
    problems += check_config(config, shapes)
    section, place = stored_section(folder, config)
    if section is None:
        problems += check_names(config, shapes, ())
        _check_weights(StoredWeights(folder, torch.float32), config, problems)
        return Facts(), ""
    if not isinstance(section, dict) or not isinstance(section.get("quant_method"), str):
        raise ValueError(f"{folder}/{place}: quantization_config has no quant_method")
    with as_written(folder):
        return _quantized(folder, section, problems), place


def _quantized(folder: Path, section: dict[str, Any], problems: list[Problem]) -> Facts:
    """Return what is known of a quantized checkpoint, and add problems on the way."""
    facts = Facts(section)
    try:
        form = find_format(section)
    except CannotReadError as error:
        problems.append(("unread", str(error)))
        return facts
    if form is None or form.codes is None or form.file is not None:
        layout = _layout(facts)
        try:
            weights = StoredWeights(folder, torch.float32)
        except NotImplementedError:
            message = f"mlcalib does not know the layout {layout!r}: its tensors were not looked at"
            problems.append(("unread", message))
            return facts
        said = f"{layout} is dequantized when a model is read to be quantized again"
        problems.append(("note", said))
        config = _config(folder)
        found = {name: weights.shape(name) or () for name in weights.names}
        problems += check_names(config, found, ())
        _check_weights(weights, config, problems)
        return facts
    told = list(form.check_section(section))
    problems += told
    if any(kind == "damaged" for kind, _ in told):
        return facts
    try:
        checkpoint = open_checkpoint(folder)
    except CannotReadError as error:
        problems.append(("unread", str(error)))
        return facts
    if not checkpoint.linears:
        said = f"no linear has codes (…{form.codes}), though the config says so"
        problems.append(("damaged", said))
    stored = shapes_of(checkpoint.files, checkpoint.linears, form)
    problems += check_names(checkpoint.config, stored, checkpoint.linears)
    shapes: dict[str, tuple[int, int]] = {}
    problems += check_values(checkpoint, shapes)
    _compare(StoredWeights(folder, checkpoint.dtype), checkpoint.config, problems)
    left = set(linear_names(shapes_of(checkpoint.files))) - set(checkpoint.linears)
    return Facts(section, checkpoint.specs, shapes, checkpoint.dtype, left)


def _compare(weights: StoredWeights, config: dict[str, Any], problems: list[Problem]) -> bool:
    """Add what is missing or otherwise than the model's class says, if nothing is known yet.

    Returns:
        Whether the files hold output embeddings of their own, although config.json ties them.
    """
    if known_family(config) and all(kind not in ("damaged", "unread") for kind, _ in problems):
        try:
            return check_model(weights)
        except ValueError as error:
            kind: Kind = "unread" if isinstance(error, CannotReadError) else "damaged"
            problems.append((kind, str(error)))
    return False


def _check_weights(weights: StoredWeights, config: dict[str, Any], problems: list[Problem]) -> None:
    """Add what is wrong with tensors that a model is read from: names, shapes and values."""
    if _compare(weights, config, problems):
        problems.append(("damaged", LOST_HEAD))
    try:
        for name, tensor in weights.read(weights.names):
            if tensor.is_floating_point() and not tensor.float().isfinite().all():
                problems.append(("damaged", f"{name} has values that are not finite"))
    except CannotReadError as error:
        problems.append(("unread", str(error)))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} is neither a folder nor a GGUF file")
    if not path.is_file():
        if (folder / ADAPTER).is_file():
            validate_folder(folder)  # says what an adapter is
        raise ValueError(f"{folder} has no config.json")
    if (size := path.stat().st_size) > _MAX_CONFIG:
        raise ValueError(f"{path} has {size} bytes; a config has a few thousand")
    return read_json(path)
