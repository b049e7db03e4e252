"""What mlcalib does with one class of transformers: found, run, quantized, saved and read again."""

import copy
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from small_tokenizer import make_tokenizer
from tiny_architectures import tiny_models

import mlcalib
from mlcalib.models import Adapter
from mlcalib.models.discovery import discover
from mlcalib.models.discovery.trace import language_models
from mlcalib.models.experts import unfuse_all
from mlcalib.models.folding import fold, source_channels

METHODS = ("rtn", "gptq", "awq")
TOKENS = 16
TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest one."""
FOLDED = 1e-3
"""The same after folding, which rounds every weight once more (float32)."""

Result = dict[str, Any]


def examine(name: str, model_types: list[str], keep: Callable[[Result], None]) -> Result:
    """Return how far a class gets.

    Args:
        name: of the class.
        model_types: that it is for.
        keep: called with the result as it grows, so that a crash loses nothing.

    Returns:
        ``built``, ``runs`` (on token ids alone, whole or its language model), ``blocks``,
        ``linears``, ``share`` of the blocks' parameters in linears that are quantized,
        ``scale_groups``, then for ``rtn``, ``gptq`` and ``awq`` whether the reloaded checkpoint
        gives the logits of the model in memory; ``why`` has the first failure.
    """
    result: Result = {"class": name, "stage": "build"}
    keep(result)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 250, (4, TOKENS), generator=generator)
    model = running_model(name, model_types, ids, result)
    if model is None:
        return result
    result |= {"runs": True, "stage": "discover", "why": None}
    keep(result)
    try:
        _discovered(model, ids, result)
        for method in METHODS:
            result["stage"] = method
            keep(result)
            result[method] = _quantized(model, ids, method)
    except Exception as error:  # is what the sweep is to find
        result["why"] = f"{result['stage']}: {_said(error)}"
    else:
        result["stage"] = "done"
    return result


def running_model(name: str, model_types: list[str], ids: torch.Tensor, result: Result) -> Any:
    """Return the first tiny model of a class that runs, or None; say so in the result."""
    for recipe, made in tiny_models(name, model_types):
        if isinstance(made, str):
            result.setdefault("why", made)
            continue
        result |= {"built": True, "recipe": recipe}
        try:
            logits(made, ids[:1])
        except Exception as error:  # whatever a class raises that wants more than token ids
            result["why"] = _said(error)
            continue
        return made
    return None


def _discovered(model: Any, ids: torch.Tensor, result: Result) -> None:
    adapter = discover(model)
    own = copy.deepcopy(model)
    unfuse_all(own)
    inside = whole = groups = linears = 0
    for _, block in adapter.named_blocks(own):
        members = [each for names in adapter.linears_of(block).values() for each in names]
        inside += sum(adapter.linear(block, each).weight.numel() for each in members)
        whole += sum(each.numel() for each in block.parameters())
        groups += len(adapter.scale_groups_of(block))
        linears += len(members)
    _fold_all(adapter, own, model, ids[:1])
    result |= {
        "blocks": len(adapter.names),
        "path": adapter.blocks,
        "kinds": len(adapter.layouts),
        "linears": linears,
        "share": round(inside / max(whole, 1), 3),
        "scale_groups": groups,
        "experts": any(each.experts for each in adapter.layouts.values()),
        "handed_over": [*map(str, adapter.handed_over), *map(str, adapter.filled)],
    }


def _fold_all(adapter: Adapter, own: Any, model: Any, ids: torch.Tensor) -> None:
    """Fold random scales into all scale groups of a copy, which has to give the same logits."""
    generator = torch.Generator().manual_seed(2)
    for _, block in adapter.named_blocks(own):
        for group in adapter.scale_groups_of(block):
            of_source = source_channels(adapter, block, group)
            reader = adapter.linear(block, adapter.linears_of(block)[group.inputs[0]][0])
            made = reader.in_features if of_source is None else int(of_source.max()) + 1
            scales = 0.5 + 1.5 * torch.rand(made, generator=generator)
            fold(adapter, block, group, scales if of_source is None else scales[of_source])
    difference = _difference(logits(own, ids), logits(model, ids))
    if difference > FOLDED:
        raise AssertionError(f"logits differ by {difference:.1e} after scales have been folded")


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _quantized(model: Any, ids: torch.Tensor, method: str) -> bool:
    """Quantize in memory and from files; return whether the reloaded checkpoint gives the same."""
    tokenizer = make_tokenizer()
    calibration = None
    if method != "rtn":
        texts = {"en": ids[:2].tolist(), "sw": ids[2:].tolist()}
        calibration = mlcalib.calibration(None, corpus=texts, seq_len=TOKENS)
    options: dict[str, Any] = {"bits": 8, "group_size": -1, "progress": False, "method": method}
    options["format"] = "dense"
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        ours = mlcalib.quantize(model, calibration, tokenizer=tokenizer, **options)
        mlcalib.quantize_checkpoint(source, out, calibration, **options)
        again = type(model).from_pretrained(out, dtype=torch.float32).eval()
        expected, found = logits(ours.model, ids[:1]), logits(again, ids[:1])
    difference = _difference(found, expected)
    if difference > TOLERANCE:
        raise AssertionError(f"logits of the reloaded checkpoint differ by {difference:.1e}")
    return True


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return what a model gives on token ids alone, or else the language model inside of it."""
    try:
        return _head(model, ids)
    except Exception:  # whatever a class raises that wants more
        for path in language_models(model):
            with suppress(Exception):
                return _head(model.get_submodule(path), ids)
        raise


def _head(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits, also where the model fails after its head."""
    given: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    handle = head and head.register_forward_hook(lambda *call: given.append(call[2]))
    try:
        return model(input_ids=ids, use_cache=False).logits
    except Exception:
        if not given:
            raise
        return given[-1]
    finally:
        if handle:
            handle.remove()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
