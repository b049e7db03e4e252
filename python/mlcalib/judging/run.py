"""A judge over all pairs, in both orders."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlcalib.common.errors import named, printable
from mlcalib.common.progress import progress_bar
from mlcalib.judging.journal import Journal
from mlcalib.judging.judges import Judge, Letter, Opinion
from mlcalib.judging.texts import Pair, fingerprint
from mlcalib.judging.win_rates import ALL, Verdict, WinRate, wilson, win_rate

Order = Literal["first-second", "second-first"]
ORDERS: tuple[Order, Order] = ("first-second", "second-first")
_VERDICTS: dict[Order, dict[Letter, Verdict]] = {
    "first-second": {"A": "first", "B": "second", "C": "tie"},
    "second-first": {"A": "second", "B": "first", "C": "tie"},
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One opinion on one pair.

    Attributes:
        language: of the prompt.
        id: of the prompt.
        order: whose answer was shown first.
        letter: A (shown first), B, C (neither), or None.
    """

    language: str
    id: str
    order: Order
    letter: Letter | None

    @property
    def verdict(self) -> Verdict | None:
        """Whose answer is better; None where the judge did not say."""
        return None if self.letter is None else _VERDICTS[self.order][self.letter]


@dataclass(frozen=True)
class PositionBias:
    """What the order of the answers did.

    Attributes:
        both: pairs with an opinion in both orders.
        same: of these, how many got the same verdict in both.
        decided: opinions other than a tie, on these pairs.
        shown_first: share of them for the answer shown first; ½ without bias.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
    """

    both: int
    same: int
    decided: int
    shown_first: float
    low: float
    high: float


def judge(
    pairs: Sequence[Pair], by: Judge, out: str | Path, *, progress: bool = True
) -> list[Judgement]:
    """Ask a judge about every pair, in both orders if the order can matter to it.

    Each opinion is on disk before the next is asked for; what is there is not asked again.

    Args:
        pairs: the answers.
        by: the judge.
        out: JSONL of the opinions, with what they rest on.
        progress: show a bar.

    Raises:
        BlockingIOError: another run writes ``out``.
        ValueError: no pairs; ``out`` holds opinions on other pairs or of another judge; the judge
            refuses.
        ConnectionError: the judge cannot be reached; what it said so far is kept.
    """
    if not pairs:
        raise ValueError("There is nothing to judge: no pair of answers was given.")
    orders = ORDERS if by.reads_both else ORDERS[:1]
    wanted = {(each.language, each.id, order): each for each in pairs for order in orders}
    settings = (f"{name}={value}" for name, value in sorted(by.identity.items()))
    with Journal(out, fingerprint(pairs, *settings), "judgements", Judgement) as journal:
        for row in journal.rows:
            if wanted.pop((row.language, row.id, row.order), None) is None:
                raise ValueError(
                    f"{out} holds a judgement that was not asked for, or one twice: id "
                    f"{printable(row.id)} in '{printable(row.language)}', {row.order}; "
                    "give another --out, or remove that line."
                )
        with (
            progress_bar(total=len(wanted), desc="judging", disable=not progress) as bar,
            ThreadPoolExecutor(by.workers) as pool,
        ):
            asked = {pool.submit(_ask, by, each, key[2]): key for key, each in wanted.items()}
            try:
                for future in as_completed(asked):
                    language, name, order = asked[future]
                    opinion = future.result()
                    journal.append(
                        {"language": language, "id": name, "order": order,
                         "letter": opinion.letter, **opinion.evidence}
                    )  # fmt: skip
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        # In the order of the pairs, whichever came first.
        place = {(each.language, each.id): index for index, each in enumerate(pairs)}
        return sorted(journal.rows, key=lambda row: (place[row.language, row.id], row.order))


def judged_win_rates(judgements: Iterable[Judgement]) -> dict[str, WinRate]:
    """Return the second model's win rate per language, and of all together under ``all``.

    A pair's score is the mean over both orders, so that a judge who takes whatever is shown first
    gives ½. Opinions without a letter count in neither; a language that has no other is left out.
    """
    verdicts: dict[str, dict[str, list[Verdict]]] = {}
    for each in judgements:
        if each.verdict is not None:
            verdicts.setdefault(each.language, {}).setdefault(each.id, []).append(each.verdict)
    rates = {code: win_rate(items.values()) for code, items in verdicts.items()}
    if len(rates) > 1:
        rates[ALL] = win_rate([each for items in verdicts.values() for each in items.values()])
    return rates


def position_bias(judgements: Iterable[Judgement]) -> PositionBias | None:
    """Return what the order did; None for a judge who reads one answer at a time."""
    by_pair: dict[tuple[str, str], list[Judgement]] = {}
    for each in judgements:
        if each.letter is not None:
            by_pair.setdefault((each.language, each.id), []).append(each)
    both = [found for found in by_pair.values() if len(found) == len(ORDERS)]
    if not both:
        return None
    letters = [each.letter for found in both for each in found if each.letter != "C"]
    same = sum(found[0].verdict == found[1].verdict for found in both)
    if not letters:
        return PositionBias(len(both), same, 0, 0.5, 0.0, 1.0)
    share = letters.count("A") / len(letters)
    return PositionBias(len(both), same, len(letters), share, *wilson(share, len(letters)))


def _ask(by: Judge, pair: Pair, order: Order) -> Opinion:
    if order == "second-first":
        pair = replace(pair, first=pair.second, second=pair.first)
    with named(f"judging id {pair.id} in '{pair.language}'"):
        return by.compare(pair)
