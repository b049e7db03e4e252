"""``mlcalib.study``: quantizes and evaluates in every combination of settings."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mlcalib import _core
from mlcalib.common.files import atomic_file, check_folder, full_path
from mlcalib.common.ranks import Ranks
from mlcalib.evaluation.sharing import check_seen
from mlcalib.models.device import choose_device, device_name, explain
from mlcalib.quantization.manifest import machine
from mlcalib.studies.evaluate import check_evaluation, described, evaluate_model
from mlcalib.studies.finished import Study
from mlcalib.studies.grid import VariantSpec, variants_of
from mlcalib.studies.plan import Plans, plan
from mlcalib.studies.run import ModelStudy, open_model, quantize_model
from mlcalib.studies.spec import StudySpec, read_study


def study(
    spec: StudySpec | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    plan_only: bool = False,
    progress: bool = True,
    echo: Callable[[str], None] = print,
    ranks: Ranks | None = None,
    **changes: Any,
) -> Study:
    """Quantize and evaluate models in every combination of settings and quantizers.

    Statistics add up, so with float propagation the model runs once for all settings. What is
    finished is skipped: a study that was interrupted continues when it is called again, and a study
    to which settings were added makes only the new checkpoints. The checkpoints are, bit for bit,
    those of ``mlcalib.quantize_checkpoint`` with ``propagate="float"`` on the same instruction set
    and number of threads.

    Args:
        spec: the name of a preset (``paper``, ``paper-small``, ``quantization-multilingual``,
            ``quantization-multilingual-small``, ``curves``), the path of a YAML file, its content,
            or a ``StudySpec``.
        out: the folder of the study. It may hold an unfinished study.
        plan_only: only print what would be done.
        progress: whether to show progress bars.
        echo: is called with each piece of text that is printed.
        ranks: the processes that do this together, from ``joined_ranks``; each calls this with the
            same arguments, and all see the folder of the study.
        changes: new values of single keys of the study, e.g. ``corpus`` or ``tokens``; of
            ``evaluation`` also of single keys in it.

    Returns:
        The study: ``results``, ``table(name)``, ``figure(name)``, ``report()``, and as ``plans``
        what was left to do; a notebook shows it as tables.

    Raises:
        FileNotFoundError: the study, a model or a text does not exist.
        ValueError: the study asks for something impossible, there is too little text, or the folder
            holds a variant that was made from other inputs; the message names it.
        OSError: the disk is full. What is finished is kept.
    """
    ranks = Ranks() if ranks is None else ranks
    if isinstance(spec, StudySpec):
        spec = spec.model_dump(exclude_defaults=True)
    found = read_study(spec, **changes)
    variants_of(found)
    check_evaluation(found)
    out = full_path(out)
    echo(explain(found.device, choose_device(found.device)))
    plans = Plans()
    opened = []
    if not plan_only and ranks.alone:
        check_folder(out)
    elif not plan_only:
        check_seen(out, ranks)
    for name in found.models:
        model = open_model(found, name, out, ranks)
        opened.append((name, model))
        planned = plan(model, ranks)
        plans.append(planned)
        echo(planned.table())
        for code, report in (model.text.union.report if model.text else {}).items():
            if report.got < report.asked:
                echo(f"  short: {code} has {report.got:,} of {report.asked:,} tokens asked for")
        for warning in model.text.union.warnings if model.text else ():
            echo(f"  warning: {warning}")
    if plan_only:
        return Study(out, plans)
    if ranks.writes:
        _write_study(found, opened, out)
    for _, model in opened:
        quantize_model(model, ranks, progress=progress)
    for name, model in opened:
        evaluate_model(model, name, ranks, progress=progress)
    echo(f"written to {out}; mlcalib report {out} shows it")
    return Study(out, plans)


def _variant(each: VariantSpec, model: ModelStudy) -> dict[str, Any]:
    """Return what ``study.json`` says of a variant."""
    if each.threshold is None:
        options = model.recipes[each.name].description["options"]
    else:
        options = {"bits": 8, "group_size": -1, "symmetric": True, **each.options}
    return each.model_dump(exclude={"name"}) | {"options": options}


def _write_study(spec: StudySpec, opened: list[tuple[str, ModelStudy]], out: Path) -> None:
    first = opened[0][1]
    settings = first.text.settings if first.text else {}
    device = choose_device(spec.device)
    versions = {name: machine(device)[name] for name in ("torch", "transformers")}
    content = {
        "layout": 1,
        "name": spec.name,
        "source": spec.source,
        "mlcalib": _core.build_info()["version"],
        "versions": versions,
        "isa": _core.isa(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "corpus": spec.corpus,
        "seq_len": spec.seq_len,
        "seed": spec.seed,
        "propagate": spec.propagate,
        "models": {
            model.slug: {
                "source": name,
                "parameters": sum(each.numel() for each in model.source.model.parameters()),
                "dtype": str(model.source.dtype).removeprefix("torch."),
            }
            for name, model in opened
        },
        "settings": {
            name: {
                "set": each.set_name,
                "tokens": sum(each.tokens.values()),
                "languages": each.tokens,
                "weights": {code: each.weights.get(code, 1.0) for code in each.tokens},
            }
            for name, each in settings.items()
        },
        "variants": {name: _variant(each, first) for name, each in variants_of(spec).items()},
        "evaluation": described(first),
        "layers": spec.layers is not None,
    }
    with atomic_file(out / "study.json") as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
