"""Everything that can be told of a checkpoint without a model, a pickle or remote code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcalib.checkpoints import Checkpoint, open_checkpoint
from mlcalib.checkpoints.check import gguf_file
from mlcalib.checkpoints.check.config import check_config, check_section
from mlcalib.checkpoints.check.readers import (
    LAYOUTS,
    READERS,
    Facts,
    Verdict,
    layout,
    split_linears,
    verdicts,
)
from mlcalib.checkpoints.check.report import Finding, Report
from mlcalib.checkpoints.check.tensors import check_names, check_values, linear_names, shapes_of
from mlcalib.common.safetensors_read import read_json, validate_folder
from mlcalib.formats import find_gguf

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
    facts = Facts("")
    try:
        if (file := find_gguf(path)) is not None:
            facts, errors = gguf_file.inspect(file)
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
    return Report(str(path), facts.method, len(facts.specs), tuple(findings), readers)


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
        findings += _errors(check_names(config, shapes_of(files, ()), ()))
        return Facts("")
    if not isinstance(section, dict) or not isinstance(section.get("quant_method"), str):
        raise ValueError(f"{folder}/config.json: quantization_config has no quant_method")
    if (method := layout(section)) not in LAYOUTS:
        message = f"mlcalib does not know the layout {method!r}: its tensors were not looked at"
        findings.append(Finding("warning", message))
        return Facts(method, section)
    told = [Finding(level, message) for level, message in check_section(method, section)]
    findings += told
    if any(finding.level == "error" for finding in told):
        return Facts(method, section)
    checkpoint = open_checkpoint(folder)
    shapes: dict[str, tuple[int, int]] = {}
    findings += _errors(_quantized(checkpoint, shapes))
    left = set(linear_names(shapes_of(files, ()))) - set(checkpoint.linears)
    facts = Facts(method, section, checkpoint.specs, shapes, checkpoint.dtype, left)
    findings += [Finding("warning", f"vLLM, SGLang: {text}") for text in split_linears(facts)]
    return facts


def _errors(messages: Iterator[str]) -> list[Finding]:
    return [Finding("error", message) for message in messages]


def _quantized(checkpoint: Checkpoint, read: dict[str, tuple[int, int]]) -> Iterator[str]:
    if not checkpoint.linears:
        yield f"no linear has codes (…{checkpoint.format.codes}), though the config says so"
    shapes = shapes_of(checkpoint.files, checkpoint.linears)
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
