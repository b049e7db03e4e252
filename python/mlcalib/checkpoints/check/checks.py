"""Everything that can be told of a checkpoint without a model, a pickle or remote code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcalib.checkpoints import Checkpoint, open_checkpoint
from mlcalib.checkpoints.check.config import check_config
from mlcalib.checkpoints.check.report import Finding, Report
from mlcalib.checkpoints.check.tensors import check_names, check_values, linear_names, shapes_of
from mlcalib.common.safetensors_read import read_json, validate_folder
from mlcalib.formats import (
    READERS,
    Facts,
    Verdict,
    Verdicts,
    cannot_tell,
    find_file,
    find_format,
    formats,
    ordinary,
    split_linears,
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
    findings: list[Finding] = []
    facts = Facts()
    try:
        if (found := find_file(path)) is not None:
            form, file = found
            facts, errors = form.check_file(file)
            findings += _errors(iter(errors))
        else:
            facts = _inspect(path, findings)
    except (ValueError, OSError, NotImplementedError) as error:
        findings.append(Finding("error", str(error)))
    return _report(path, facts, findings)


def _report(path: Path, facts: Facts, findings: list[Finding]) -> Report:
    findings = sorted(findings, key=lambda finding: finding.level)
    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        readers = dict.fromkeys(READERS, Verdict(False, ("see the errors",)))
    else:
        readers = verdicts(facts)
    return Report(str(path), _layout(facts), len(facts.specs), tuple(findings), readers)


def verdicts(facts: Facts) -> Verdicts:
    """Return what each reader makes of a checkpoint, by its ``quantization_config``.

    Raises:
        ValueError: it describes a variant that cannot be read.
    """
    if not facts.section:
        return ordinary()
    form = find_format(facts.section)
    return cannot_tell(_layout(facts)) if form is None else form.verdicts(facts)


def _layout(facts: Facts) -> str:
    """Return the quant_method, with what else tells layouts apart; "" for none."""
    method = str(facts.section.get("quant_method", ""))
    return formats.get(method).layout(facts.section) if method in formats.names() else method


def _inspect(folder: Path, findings: list[Finding]) -> Facts:
    """Return what is known, and add what is found on the way.

    Raises:
        ValueError: nothing more can be told.
    """
    config = _config(folder)
    files = validate_folder(folder)
    findings += _errors(check_config(config))
    section = config.get("quantization_config")
    if section is None:
        findings += _errors(check_names(config, shapes_of(files), ()))
        return Facts()
    if not isinstance(section, dict) or not isinstance(section.get("quant_method"), str):
        raise ValueError(f"{folder}/config.json: quantization_config has no quant_method")
    facts = Facts(section)
    form = find_format(section)
    if form is None or form.codes is None or form.file is not None:
        layout = _layout(facts)
        message = f"mlcalib does not know the layout {layout!r}: its tensors were not looked at"
        findings.append(Finding("warning", message))
        return facts
    told = [Finding(level, message) for level, message in form.check_section(section)]
    findings += told
    if any(finding.level == "error" for finding in told):
        return facts
    checkpoint = open_checkpoint(folder)
    shapes: dict[str, tuple[int, int]] = {}
    findings += _errors(_quantized(checkpoint, shapes))
    left = set(linear_names(shapes_of(files))) - set(checkpoint.linears)
    facts = Facts(section, checkpoint.specs, shapes, checkpoint.dtype, left)
    findings += [Finding("warning", f"vLLM, SGLang: {text}") for text in split_linears(facts)]
    return facts


def _errors(messages: Iterator[str]) -> list[Finding]:
    return [Finding("error", message) for message in messages]


def _quantized(checkpoint: Checkpoint, read: dict[str, tuple[int, int]]) -> Iterator[str]:
    if not checkpoint.linears:
        yield f"no linear has codes (…{checkpoint.format.codes}), though the config says so"
    shapes = shapes_of(checkpoint.files, checkpoint.linears, checkpoint.format)
    yield from check_names(checkpoint.config, shapes, checkpoint.linears)
    yield from check_values(checkpoint, read)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"{folder} is neither a folder nor a GGUF file")
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json")
    if (size := path.stat().st_size) > _MAX_CONFIG:
        raise ValueError(f"{path} has {size} bytes; a config has a few thousand")
    return read_json(path)
