"""What ``mlcalib.json`` records of a checkpoint, and what of it people should look at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from mlcalib import _core
from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.checked import as_type
from mlcalib.common.ranks import Ranks
from mlcalib.common.safetensors_read import read_json


@dataclass(frozen=True)
class _Recipe:
    method: str


@dataclass(frozen=True)
class _Calibration:
    set: str


@dataclass(frozen=True)
class _Origin:
    """What ``origin`` needs of a record."""

    recipe: _Recipe
    calibration: _Calibration | None


def layer_record(
    linear: QuantizedLinear,
    losses: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
    shrinkage: float | None = None,
    divergence: Mapping[str, float] | None = None,
    statistics: str | None = None,
    clipped: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return what is recorded of one linear.

    Args:
        linear: codes and grid.
        losses: language → tr(D G Dᵀ) per token.
        ranges: language → extremes of its input.
        shrinkage: of an expert whose Gram was shrunk towards that of all experts: the share of its
            tokens that are theirs; 1 where it has none of its own.
        divergence: language → what it costs the model by the loss's gradients, in nats per token;
            None where these are not known.
        statistics: of a linear of an expert: ``gram``, or ``diagonal`` where the losses are those
            of the diagonals of the languages' Grams. Either way it is solved with a whole Gram.
        clipped: language → the share of its input's values that the checkpoint's range of it
            leaves outside; None where the checkpoint stores no ranges of inputs.
    """
    known: dict[str, Any] = {} if shrinkage is None else {"shrinkage": shrinkage}
    if statistics is not None:
        known["statistics"] = statistics
    if divergence is not None:
        known["divergence"] = dict(divergence)
    if linear.correction:
        known["correction"] = linear.correction
    if clipped is not None:
        known["input_bound"] = linear.input_bound
        known["input_clipped"] = dict(clipped)
    return known | {
        "loss_per_token": dict(losses),
        "input_range": {language: list(pair) for language, pair in ranges.items()},
        "damp": linear.damp,
        "dead_channels": linear.dead_channels,
    }


def resources(ranks: Ranks) -> dict[str, int]:
    """Return what decides the last bits of sums beside the machine: how they are split."""
    return {"ranks": ranks.size, "threads": torch.get_num_threads()}


def checkpoint_record(  # noqa: PLR0913 - what there is to know of a checkpoint
    recipe: Mapping[str, Any],
    calibration: CalibrationSet | None,
    layers: Mapping[str, Mapping[str, Any]],
    scales: Mapping[str, Mapping[str, float]],
    expert_tokens: Mapping[str, Mapping[str, int]],
    seconds: Mapping[str, float],
    device: str,
    made_with: Mapping[str, Mapping[str, int]] | None = None,
    kv_cache: Mapping[str, Any] | None = None,
    *,
    tuned: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the content of ``mlcalib.json``; JSON types.

    Args:
        recipe: what was asked for, with the format.
        calibration: what it was calibrated on, or None.
        layers: name → ``layer_record``.
        scales: source of a scale group → how its scales were found.
        expert_tokens: expert → language → calibration tokens that were routed to it.
        seconds: phase → time.
        device: what blocks ran on: ``cpu``, or the name of a GPU.
        made_with: block → ``resources``, where they were not all made by one process with the
            threads that there are now.
        kv_cache: attention module → ``k`` and ``v`` → bound, ranges and clipped shares; see
            ``CacheRanges.describe``. Empty or None where the checkpoint has no scales of them.
        tuned: of each time that scales were tuned, what ``mlcalib.tune`` did.
    """
    record = {
        "mlcalib": _core.build_info()["version"],
        "versions": {
            "torch": torch.__version__,
            **{name: version(name) for name in ("transformers", "compressed-tensors")},
        },
        "isa": _core.isa(),
        "threads": torch.get_num_threads(),
        "device": device,
        **({"made_with": dict(made_with)} if made_with else {}),
        "recipe": dict(recipe),
        "calibration": None if calibration is None else calibration.describe(),
        "layers": dict(layers),
        "scales": dict(scales),
        "expert_tokens": dict(expert_tokens),
        **({"kv_cache": dict(kv_cache)} if kv_cache else {}),
        **({"tuned": list(tuned)} if tuned else {}),
    }
    spent = {phase: round(time, 3) for phase, time in seconds.items()}
    return record | {"warnings": warnings(record), "seconds": spent}


def origin(folder: str | Path) -> tuple[str, str]:
    """Return the method and the calibration set of a checkpoint; ``float`` and ``none`` of others.

    Args:
        folder: any model; only the ``mlcalib.json`` of a folder is looked at.

    Raises:
        ValueError: the record is not one that mlcalib wrote.
    """
    path = Path(folder) / "mlcalib.json"
    if not path.is_file():
        return "float", "none"
    try:
        content = as_type(read_json(path), _Origin)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a record that mlcalib wrote ({error}); restore it, or remove it to "
            "take the folder as any model."
        ) from error
    calibration = content.calibration
    return content.recipe.method, "none" if calibration is None else calibration.set


def warnings(record: Mapping[str, Any]) -> list[str]:
    """Return what to look at in a record: one sentence each."""
    found = []
    calibration = record["calibration"] or {"languages": {}}
    for code, report in calibration["languages"].items():
        if report["got"] < report["asked"]:
            found.append(f"{code} has {report['got']:,} of {report['asked']:,} tokens asked for")
    asked = record["recipe"]["options"].get("damp")
    damps = {name: layer["damp"] for name, layer in record["layers"].items()}
    raised = {name: damp for name, damp in damps.items() if damp != (asked or 0)}
    if raised:
        worst = max(raised, key=raised.__getitem__)
        found.append(
            f"damping raised above {asked} in {len(raised)} linears, most in {worst}: "
            f"{raised[worst]:g}"
        )
    dead = {name: layer["dead_channels"] for name, layer in record["layers"].items()}
    if any(dead.values()):
        worst = max(dead, key=dead.__getitem__)
        found.append(
            f"channels without any activation (rounded): {sum(dead.values())} in "
            f"{sum(map(bool, dead.values()))} linears, most in {worst}: {dead[worst]}"
        )
    diagonal = [
        name for name, each in record["layers"].items() if each.get("statistics") == "diagonal"
    ]
    if diagonal:
        found.append(
            f"losses of languages in {len(diagonal)} linears of experts are those of the diagonals "
            "of their Grams, because memory was short: they leave out what channels do together"
        )
    if any(each["kept_epoch"] == 0 for each in record.get("tuned", ())):
        found.append("tuning did not help on held-out text: scales were left as they were")
    shares = {name: layer.get("shrinkage", 0.0) for name, layer in record["layers"].items()}
    return found + _unseen_experts(record["expert_tokens"], shares)


def summary(record: Mapping[str, Any]) -> str:
    """Return a few lines on what was done and what to look at."""
    lines = [f"{len(record['layers'])} linears quantized with {record['recipe']['method']}"]
    counts = {True: 0, False: 0}  # skipped, changed
    for override in record["recipe"]["overrides"]:
        counts[override["options"] is None] += len(override["linears"])
    if any(counts.values()):
        lines.append(
            f"{counts[True]} linears left in floating point, {counts[False]} with options of "
            "their own"
        )
    lines += record["warnings"]
    spent = ", ".join(f"{phase} {time:.1f} s" for phase, time in record["seconds"].items())
    lines.append(f"time: {spent}")
    return "\n".join(lines)


def language_losses(record: Mapping[str, Any]) -> dict[str, float]:
    """Return language → loss per token, summed over layers; 0 in experts that it never reached."""
    calibration = record["calibration"] or {"languages": {}}
    return {
        code: sum(layer["loss_per_token"].get(code, 0.0) for layer in record["layers"].values())
        for code in calibration["languages"]
    }


def clipped_shares(linears: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return language → the share of activations outside the static ranges, mean over linears.

    Args:
        linears: of each the ``input_clipped`` of ``layer_record``; empty where it has none.
    """
    found: dict[str, list[float]] = {}
    for by_language in linears:
        for language, share in by_language.items():
            found.setdefault(language, []).append(share)
    return {language: fmean(shares) for language, shares in found.items()}


def _unseen_experts(
    tokens: Mapping[str, Mapping[str, int]], shares: Mapping[str, float]
) -> list[str]:
    """Name the experts that saw no token, and count those that a language never reached.

    Args:
        tokens: expert → language → tokens.
        shares: linear → the share of its tokens that all experts lent.
    """
    unseen: dict[str, list[str]] = {}
    for name, by_language in tokens.items():
        if not any(by_language.values()):
            experts, _, number = name.rpartition(".")
            unseen.setdefault(experts, []).append(number)
    lines = []
    if unseen:
        named = "; ".join(f"{name} {', '.join(numbers)}" for name, numbers in unseen.items())
        count = sum(map(len, unseen.values()))
        lent = any(shares.values())
        how = "the last linear rounded, others by the Gram of all experts" if lent else "rounded"
        lines.append(f"experts without any token ({how}): {count} of {len(tokens)}: {named}")
    few = {name.rpartition(".")[0] for name, share in shares.items() if 0.5 < share < 1}
    if few:
        lines.append(
            "experts that saw fewer tokens of their own than the Gram of all experts added: "
            f"{len(few)} of {len(tokens)}"
        )
    languages = next(iter(tokens.values()), {})
    missed = {code: sum(not seen[code] for seen in tokens.values()) for code in languages}
    if any(missed.values()):
        counts = ", ".join(f"{code} {count}" for code, count in missed.items() if count)
        lines.append(f"experts that saw no token of a language, of {len(tokens)}: {counts}")
    return lines
