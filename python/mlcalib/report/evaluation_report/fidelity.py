"""How far next-token distributions moved: languages × models for each measure."""

from collections.abc import Callable

import numpy as np

from mlcalib.report.comparison.relative_changes import Model
from mlcalib.report.evaluation_report.compared import FIDELITY, Compared
from mlcalib.report.page.colours import NOTHING, diverging, faded, sequential
from mlcalib.report.page.document import MISSING, Beside, Block, Cell, Paragraph, Row, Table
from mlcalib.report.page.words import between, bounds, full_name, head, probability, signed
from mlcalib.results.rows import Row as Result
from mlcalib.results.significance import Difference, holm, paired_ratio

NOTE = (
    "KL: mean over tokens of KL(float ‖ model) of next-token distributions, nats ± standard error "
    "over documents. **Boxed**: the least of the language. ≈: not told apart from the least "
    "(p ≥ 0.05, paired bootstrap over documents). Top token: tokens on which both have the same "
    "most likely one. Worst documents: the part of the rise in loss that the 5 % of documents (at "
    "least one) whose loss rose most carry."
)


def fidelity(compared: Compared) -> list[Block]:
    """Return the tables; nothing where fidelity was not measured."""
    models = [
        model
        for model in compared.others
        if any(_row(compared, model, code, "kl") for code in compared.languages)
    ]
    if not models:
        return []
    tables = {
        "KL(float ‖ model), nats; p90 and p99 over tokens": _divergence,
        "Same top token, %": _agreement,
        "Rise of the mean token loss, nats; paired bootstrap over documents": _rise,
        "Part of the rise that the worst 5 % of documents carry, %": _worst,
    }
    return [
        Paragraph(NOTE, "note"),
        Beside([_table(compared, models, title, cells) for title, cells in tables.items()]),
    ]


def behind(compared: Compared, code: str) -> tuple[Model, dict[Model, Difference]] | None:
    """Return the model with the least divergence in a language, and how far the others are behind.

    None where fewer than two have documents.
    """
    found = {
        model: items
        for model in compared.others
        if (items := compared.items.get((model, FIDELITY, code, "kl"))) is not None
        and items.sizes is not None
    }
    means = {
        model: row.value
        for model in found
        if (row := compared.row(model, FIDELITY, code, "kl")) is not None
    }
    if len(means) < 2:
        return None
    best = min(means, key=lambda model: means[model])
    differences = {
        model: paired_ratio(
            found[best].values,
            found[model].values,
            found[best].sizes or [],
            resamples=compared.resamples,
            seed=compared.seed,
        )
        for model in means
        if model != best
    }
    return best, differences


def rises(compared: Compared, model: Model) -> dict[str, tuple[float, float]]:
    """Return language → rise in loss and its p after Holm's correction, where there is one."""
    found = {
        code: (rise.value, p.value)
        for code in compared.languages
        if (rise := _row(compared, model, code, "loss_rise"))
        and (p := _row(compared, model, code, "loss_rise_p"))
    }
    adjusted = holm({code: p for code, (_, p) in found.items()})
    return {code: (rise, adjusted[code]) for code, (rise, _) in found.items()}


def _row(compared: Compared, model: Model, code: str, metric: str) -> Result | None:
    return compared.row(model, FIDELITY, code, metric)


_Cells = Callable[[Compared, list[Model], str], list[Cell]]


def _table(compared: Compared, models: list[Model], title: str, cells: _Cells) -> Table:
    rows: list[Row] = []
    for code in compared.languages:
        if any(_row(compared, model, code, "kl") for model in models):
            rows.append([head(code, _documents(compared, code)), *cells(compared, models, code)])
    names = [compared.labels[model] for model in models]
    return Table(title, ["language", *names], rows, heat=True)


def _documents(compared: Compared, code: str) -> str:
    counts = {
        np.size(items.values)
        for (_, task, other, _), items in compared.items.items()
        if (task, other) == (FIDELITY, code)
    }
    return " / ".join(f"{count} documents" for count in sorted(counts))


def _divergence(compared: Compared, models: list[Model], code: str) -> list[Cell]:
    end = _greatest(compared, models, "kl")
    found = behind(compared, code)
    cells = []
    for model in models:
        row = _row(compared, model, code, "kl")
        if row is None:
            cells.append(Cell(MISSING, colour=NOTHING, grey=True))
            continue
        best = found is not None and found[0] == model
        back = None if found is None else found[1].get(model)
        tail = [_row(compared, model, code, f"kl_{name}") for name in ("p90", "p99")]
        error = "" if row.stderr is None else f" ± {row.stderr:.2g}"
        title = f"{full_name(code)}, {compared.labels[model]}: {row.value:.6g}{error}"
        if back is not None:
            title += f"; {between(back, 5)} above the least, {probability(back.p)}"
        cells.append(
            Cell(
                f"{row.value:.3g}{error}" + (" ≈" if back and not back.significant else ""),
                " · ".join(f"{each.value:.3g}" for each in tail if each is not None),
                colour=sequential(row.value / end),
                title=title,
                best=best,
            )
        )
    return cells


def _agreement(compared: Compared, models: list[Model], code: str) -> list[Cell]:
    cells = []
    for model in models:
        row = _row(compared, model, code, "top1_agreement")
        if row is None:
            cells.append(Cell(MISSING, colour=NOTHING, grey=True))
            continue
        error = "" if row.stderr is None else f"± {100 * row.stderr:.1f}"
        colour = sequential((1 - row.value) / 0.5)  # half of the tokens ends the scale
        cells.append(Cell(f"{100 * row.value:.1f}", error, colour=colour))
    return cells


def _rise(compared: Compared, models: list[Model], code: str) -> list[Cell]:
    end = _greatest(compared, models, "loss_rise")
    cells = []
    for model in models:
        row = _row(compared, model, code, "loss_rise")
        if row is None:
            cells.append(Cell(MISSING, colour=NOTHING, grey=True))
            continue
        ends = [_row(compared, model, code, f"loss_rise_{name}") for name in ("low", "high")]
        low, high = (None if each is None else each.value for each in ends)
        p = rises(compared, model).get(code, (0.0, None))[1]
        grey = p is None or p >= 0.05
        colour = diverging(row.value / end)
        cells.append(
            Cell(
                signed(row.value),
                bounds(Difference(row.value, low, high, p, row.n, 0)),
                colour=faded(colour) if grey else colour,
                title=f"{full_name(code)}, {compared.labels[model]}: {probability(p)} after Holm's "
                "correction for the languages",
                grey=grey,
            )
        )
    return cells


def _worst(compared: Compared, models: list[Model], code: str) -> list[Cell]:
    found = [_row(compared, model, code, "worst_documents_share") for model in models]
    return [
        Cell("no rise", grey=True) if row is None else Cell(f"{100 * row.value:.1f}")
        for row in found
    ]


def _greatest(compared: Compared, models: list[Model], metric: str) -> float:
    values = [
        abs(row.value)
        for model in models
        for code in compared.languages
        if (row := _row(compared, model, code, metric))
    ]
    return max(values, default=1.0) or 1.0
