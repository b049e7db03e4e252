"""A small evaluation by hand: a float model and a quantized one, whose numbers are easy sums."""

import math

from mlcalib.results.rows import ItemScores, Results, Row

FLOAT, GPTQ = ("m", "float", "none"), ("out/q", "gptq", "en")
# task, language → items, right by the float model, lost by the quantized one, gained by it
ANSWERS = {
    ("xnli", "en"): (40, 20, 1, 1), ("xnli", "sw"): (40, 20, 2, 0), ("xnli", "zh"): (40, 20, 12, 0),
    ("belebele", "en"): (20, 10, 0, 0), ("belebele", "xh"): (20, 10, 5, 0),
}  # fmt: skip
MISSING = {
    ("xnli", "xh"): "no task (try afrixnli)", ("belebele", "sw"): "no data file",
    ("belebele", "zh"): "no data file",
}  # fmt: skip
TOKENS = [10, 10, 20, 10, 10]
LOSS = {"en": [20.0, 20, 41, 19, 21], "sw": [30.0, 31, 60, 29, 30]}
RISE = {"en": [0.5, 0.4, 1.0, 0.6, 0.5], "sw": [3.0, 3.1, 6.0, 2.9, 3.0]}
DIVERGENCE = {"en": [0.1, 0.1, 0.2, 0.2, 0.0], "sw": [1.0, 1.2, 2.0, 0.8, 1.0]}


def answers(task, code):
    """Items of the float model, and of the quantized one."""
    n, right, lost, gained = ANSWERS[task, code]
    before = [1.0] * right + [0.0] * (n - right)
    after = [0.0] * lost + [1.0] * (right - lost + gained) + [0.0] * (n - right - gained)
    return before, after


def results(model, scores=("tasks", "perplexity", "fidelity")):
    """What the evaluation of one of the models leaves."""
    found = Results()
    if "tasks" in scores:
        _tasks(model, found)
    for code, loss in LOSS.items() if "perplexity" in scores else ():
        rise = RISE[code] if model == GPTQ else [0.0] * len(loss)
        values = [one + more for one, more in zip(loss, rise, strict=True)]
        mean = sum(values) / sum(TOKENS)
        for metric, value in (("perplexity", math.exp(mean)), ("token_loss", mean)):
            row = Row(*model, code, "perplexity", metric, value, 0.1, sum(TOKENS), versions="v 1")
            found.append(row)
        of = (*model, code, "perplexity", "perplexity")
        found.items.append(ItemScores(*of, values, TOKENS))
    if "fidelity" in scores and model == GPTQ:
        for code, values in DIVERGENCE.items():
            kl = sum(values) / sum(TOKENS)
            of = (*model, code, "fidelity")
            for metric, value in (("kl", kl), ("kl_p90", 2 * kl), ("top1_agreement", 0.9)):
                found.append(Row(*of, metric, value, None, sum(TOKENS)))
            found.items.append(ItemScores(*of, "kl", values, TOKENS))
    return found


def _tasks(model, found):
    for task, code in ANSWERS:
        values = answers(task, code)[model == GPTQ]
        score = sum(values) / len(values)
        found.append(Row(*model, code, task, "acc", score, 0.07, len(values), versions="v 1"))
        found.items.append(ItemScores(*model, code, task, "acc", values))
    found.items += [
        ItemScores(*model, code, task, None, [], missing=why)
        for (task, code), why in MISSING.items()
    ]
