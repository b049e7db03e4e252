"""The model card: ``README.md`` of a checkpoint, made from its ``mlcalib.json`` alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mlcalib.checkpoints.record import clipped_shares, language_losses
from mlcalib.common.files import atomic_file
from mlcalib.formats import formats
from mlcalib.languages import language, script_name

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD = "README.md"
_OPTIONS = ("model", "learning_rate", "epochs", "batch", "held_out", "seed")  # of ``tune``
_CAUSAL, _SEEING = "AutoModelForCausalLM", "AutoModelForImageTextToText"
_TASK = "image-text-to-text"  # what the hub calls that of the second
_BEGIN = "<!-- results: mlcalib evaluate --card writes what stands from here -->"
_END = "<!-- results: to here -->"
_NOT_MEASURED = (
    "Nothing has been measured yet. `mlcalib evaluate BASE_MODEL THIS_FOLDER --card` measures "
    "perplexity and bits per byte per language, and writes them here."
)
_TUNED = "Tuned scales"
_ORDER = ["base_model", "base_model_relation"]  # of metadata; the rest as the hub's library has it
_FURTHER = ("activation_clip", "kv_cache")  # what a recipe has where it was asked for
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def model_card(record: Mapping[str, Any], loaded_by: str = _CAUSAL) -> str:
    """Return the card of a checkpoint, without measured results.

    Args:
        record: content of its ``mlcalib.json``; see ``QuantizedModel.metadata``.
        loaded_by: the class of transformers that loads it; see ``compat.auto_class``.
    """
    recipe = record["recipe"]
    name = Path(recipe["model"]).name
    sections = {
        "": f"# {name}: {_title(record)}\n\n{_summary(record)}",
        "Results": f"{_BEGIN}\n{_NOT_MEASURED}\n{_END}",
        "Calibration": _calibration(record),
        "Layers": _layers(record),
        _TUNED: "\n\n".join(map(_tuned, record.get("tuned", ()))),
        "To look at": "\n".join(f"- {warning}" for warning in record["warnings"]),
        "Load it": _loading(recipe["format"], loaded_by),
        "Make it again": _again(record),
    }
    body = "\n\n".join(
        f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text
    )
    metadata = _metadata(record, "text-generation" if loaded_by != _SEEING else _TASK)
    return f"---\n{metadata.to_yaml(original_order=_ORDER)}\n---\n\n{body}\n"


def converted_card(card: str, old: str, new: str) -> str:
    """Return the card of a checkpoint that was converted from one format into another."""
    was, now = formats.get(old), formats.get(new)
    found = re.search(r"^model = (\w+)\.from_pretrained", card, re.MULTILINE)
    loaded_by = _CAUSAL if found is None else found[1]
    for before, after in (
        (_loading(old, loaded_by), _loading(new, loaded_by)),
        (f"- Stored: {was.stored or old}\n", f"- Stored: {now.stored or new}\n"),
        (f"\n- {old}\n", f"\n- {new}\n"),
    ):
        card = card.replace(before, after)
    return card


def tuned_card(card: str, tuned: Mapping[str, Any]) -> str:
    """Return the card of a checkpoint whose scales were tuned, without what was measured before.

    Args:
        card: of the checkpoint, mlcalib's or another tool's; "" for none.
        tuned: what was done, as ``mlcalib.json`` has it.
    """
    if card.count(_BEGIN) == 1 and _END in card.partition(_BEGIN)[2]:
        before, _, rest = card.partition(_BEGIN)
        card = f"{before}{_BEGIN}\n{_NOT_MEASURED}\n{_END}{rest.partition(_END)[2]}"
    section = f"## {_TUNED}\n\n{_tuned(tuned)}\n"
    before, heading, after = card.partition("\n## Load it\n")
    return f"{before.rstrip()}\n\n{section}{heading}{after}".lstrip()


def _tuned(tuned: Mapping[str, Any]) -> str:
    """Say what ``mlcalib.tune`` did."""
    table = [["language", "tokens held out", "before", "after"]]
    for code, (before, after) in tuned["kl"].items():
        table.append([code, f"{tuned['held_out_tokens'][code]:,}", f"{before:.4f}", f"{after:.4f}"])
    kept = (
        f"those after epoch {tuned['kept_epoch']} were kept"
        if tuned["kept_epoch"]
        else ("none was better than before, so scales are as they were")
    )
    return (
        f"The scales were trained against `{tuned['model']}` on {tuned['tokens']:,} tokens of the "
        f"set `{tuned['calibration']['set']}` (`mlcalib.tune`): {tuned['epochs']} epochs, learning "
        f"rate {tuned['learning_rate']:g}, seed {tuned['seed']}; {kept}. Codes and zero points are "
        "as they were; losses of layers are those before. KL(float ‖ model) on text that was held "
        f"out, in nats per token:\n\n{_markdown(table, 1)}"
    )


def _loading(name: str, loaded_by: str) -> str:
    """Return how a checkpoint in a format is loaded by a class of transformers."""
    text = formats.get(name).loading
    if loaded_by == _CAUSAL:
        return text
    seeing = text.replace("AutoTokenizer", "AutoProcessor").replace("tokenizer =", "processor =")
    return seeing.replace(_CAUSAL, loaded_by)


def check_card(folder: str | Path) -> str:
    """Return the text of a folder's card, which has a place for results.

    Raises:
        ValueError: there is no card, or it has no such place.
    """
    path = Path(folder) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(_BEGIN) != 1 or _END not in text.partition(_BEGIN)[2]:
        problem = f"has no lines '{_BEGIN}' and '{_END}'" if text else "does not exist"
        raise ValueError(
            f"{path} {problem}, between which results go: it is not a card that mlcalib wrote. "
            "Put the two lines where results should stand, or leave --card out."
        )
    return text


def write_results(folder: str | Path, results: str) -> None:
    """Put results into a folder's card, in place of those that were there; all of it or nothing.

    Args:
        folder: a checkpoint that mlcalib wrote. What else its card says is kept.
        results: Markdown.

    Raises:
        ValueError: see ``check_card``.
    """
    before, _, rest = check_card(folder).partition(_BEGIN)
    after = rest.partition(_END)[2]
    with atomic_file(Path(folder) / CARD) as file:
        file.write(f"{before}{_BEGIN}\n{results.strip()}\n{_END}{after}")


def _metadata(record: Mapping[str, Any], task: str) -> "ModelCardData":
    """Return what the hub reads (https://huggingface.co/docs/hub/model-cards)."""
    from huggingface_hub import ModelCardData

    recipe = record["recipe"]
    model, options = recipe["model"], recipe["options"]
    on_hub = _HUB_NAME.fullmatch(model) and not Path(model).exists()
    natural = [code for code in _languages(record) if language(code).kind == "natural"]
    # The hub knows languages, but not scripts (zh-Hant).
    codes = list(dict.fromkeys(code.partition("-")[0] for code in natural))
    return ModelCardData(
        base_model=model.partition("@")[0] if on_hub else None,
        base_model_relation="quantized" if on_hub else None,
        language=codes or None,
        library_name="transformers",
        pipeline_tag=task,
        tags=["mlcalib", recipe["method"], f"{options['bits']}-bit", recipe["format"]],
    )


def _title(record: Mapping[str, Any]) -> str:
    calibration = record["calibration"]
    bits = f"{record['recipe']['method']}, {record['recipe']['options']['bits']} bits"
    return bits if calibration is None else f"{bits}, calibrated on {calibration['set']}"


def _summary(record: Mapping[str, Any]) -> str:
    recipe = record["recipe"]
    options = {**recipe["options"]}
    bits, size = options.pop("bits"), options.pop("group_size")
    kind = "symmetric" if options.pop("symmetric") else "asymmetric"
    if (numbers := options.pop("numbers", "integer")) != "integer":
        kind = f"numbers {numbers}"
    groups = "one scale for each row" if size == -1 else f"groups of {size} input channels"
    if super_block := options.pop("super_block", 0):
        groups += f" in super-blocks of {super_block}, scales in {options['scale_bits']} bits"
    options.pop("scale_bits", None)
    if options.pop("per_tensor", False):
        groups = "one scale for all linears that read one input"
    mix = options.pop("mix", "")
    most = f"{mix} of llama.cpp, most of them " if mix else ""
    lines = [
        f"- Base model: `{recipe['model']}`, quantized in {recipe['dtype']}",
        f"- Method: {recipe['method']} of mlcalib {record['mlcalib']}; "
        f"{', '.join(f'{name} {value}' for name, value in options.items())}",
        f"- Weights: {most}{bits} bits, {kind}, {groups}",
        f"- Stored: {formats.get(recipe['format']).stored or recipe['format']}",
        f"- Versions: {', '.join(f'{name} {at}' for name, at in record['versions'].items())}; "
        f"{record['isa']}, {record['threads']} threads",
    ]
    if record.get("kv_cache"):
        lines.append("- Keys and values: scales for a cache in FP8 (`k_scale`, `v_scale`)")
    if recipe["model"].endswith(".gguf"):
        lines.append(
            "- The base model is a GGUF file. Where this page says float, it means the weights of "
            "that file, dequantized, which need not be the original ones."
        )
    return "\n".join(lines)


def _calibration(record: Mapping[str, Any]) -> str:
    calibration = record["calibration"]
    if calibration is None:
        return "None: no text was used."
    losses = language_losses(record)
    mean = fmean(losses.values()) if losses else 0.0
    table = [["language", "name", "script", "tokens asked", "got", "loss per token", "of the mean"]]
    clipped = clipped_shares(each.get("input_clipped", {}) for each in record["layers"].values())
    table[0] += ["activations clipped"] if clipped else []
    for code, report in calibration["languages"].items():
        row = [code, language(code).name, script_name(language(code).script)]
        row += [f"{report['asked']:,}", f"{report['got']:,}"]
        row += [f"{losses[code]:.4g}", f"{losses[code] / mean:.2f}" if mean else "1.00"]
        row += [f"{clipped.get(code, 0.0):.2g}"] if clipped else []
        table.append(row)
    on = {
        "quantized": "already quantized model (`propagate=quantized`)",
        "float": "floating-point model (`propagate=float`)",
    }
    static = (
        " Activations have static ranges: the last column is the share of a language's calibration "
        "values that lie outside them, at most, mean over the linears."
    )
    got = sum(report["got"] for report in calibration["languages"].values())
    return (
        f"{got:,} tokens of the corpus `{calibration['corpus']}`, set `{calibration['set']}`, in "
        f"sequences of {calibration['seq_len']}; between documents: {calibration['separator']}. "
        f"Each block was calibrated on the {on[record['recipe']['propagate']]}.\n\n"
        f"{_markdown(table)}\n\n"
        "The loss is what quantization does to the outputs of linears on the calibration text "
        "itself: the squared error ‖x(W - Ŵ)ᵀ‖² per token, summed over all quantized linears, and "
        "as a share of the mean over languages. It compares languages, not models."
        f"{static if clipped else ''}"
    )


def _layers(record: Mapping[str, Any]) -> str:
    lines = [f"{len(record['layers'])} linears are quantized. The rest of the model is not."]
    for override in record["recipe"]["overrides"]:
        options = override["options"]
        words = (f"{name} {value}" for name, value in (options or {}).items())
        done = "in floating point" if options is None else ", ".join(words)
        lines.append(f"- `{override['pattern']}` ({len(override['linears'])} linears): {done}")
    return "\n\n".join([lines[0], "\n".join(lines[1:])]).strip()


def _again(record: Mapping[str, Any]) -> str:
    recipe, calibration = record["recipe"], record["calibration"]
    lines = ["import mlcalib", ""]
    in_memory = not (_HUB_NAME.fullmatch(recipe["model"]) or Path(recipe["model"]).exists())
    if in_memory:
        lines.append(f"model, tokenizer = ...  # {recipe['model']}, given in memory")
    if calibration is not None and calibration["arguments"]:
        lines.append(f"calibration = mlcalib.calibration({_arguments(calibration['arguments'])})")
    elif calibration is not None:
        lines.append("calibration = ...  # text or token ids were given in memory")
    if calibration is not None:
        lines.append(f"assert calibration.fingerprint == {calibration['fingerprint']!r}")
    keywords = {key: recipe[key] for key in ("method", "propagate", "format", "dtype")}
    ignore = [each["pattern"] for each in recipe["overrides"] if each["options"] is None]
    own = {
        each["pattern"]: each["options"]
        for each in recipe["overrides"]
        if each["options"] is not None
    }
    keywords |= {name: recipe[name] for name in _FURTHER if recipe.get(name)}
    keywords |= {"ignore": ignore} if ignore else {}
    keywords |= {"overrides": own} if own else {}
    keywords |= recipe["options"]
    if calibration is None:
        del keywords["propagate"]
    given = ["model" if in_memory else repr(recipe["model"])]
    given += [] if calibration is None else ["calibration"]
    given += ["tokenizer=tokenizer"] if in_memory else []
    lines.append(f"quantized = mlcalib.quantize({', '.join([*given, _arguments(keywords)])})")
    for tuned in record.get("tuned", ()):
        lines += _tuned_again(tuned, record)
    lines.append(f"quantized.save('OUT', {recipe['format']!r})")
    return "```python\n" + "\n".join(lines) + "\n```"


def _tuned_again(tuned: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    text, first = tuned["calibration"], record["calibration"]
    lines = []
    if first is None or text["fingerprint"] != first["fingerprint"]:
        given = text["arguments"]
        made = f"mlcalib.calibration({_arguments(given)})" if given else "...  # given in memory"
        lines.append(f"calibration = {made}")
    options = {key: tuned[key] for key in _OPTIONS}
    lines.append(f"quantized = mlcalib.tune(quantized, calibration, {_arguments(options)})")
    return lines


def _arguments(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def _languages(record: Mapping[str, Any]) -> list[str]:
    return list(record["calibration"]["languages"]) if record["calibration"] else []


def _markdown(table: Sequence[Sequence[str]], names: int = 3) -> str:
    """Return a table whose first columns are names, and the others numbers."""
    header, *body = table
    rule = ["---"] * names + ["--:"] * (len(header) - names)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *body])
