"""What people rated on the page → win rates and agreement."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcalib.common.checked import as_type
from mlcalib.common.json_text import loads
from mlcalib.judging.agreement import krippendorff_alpha
from mlcalib.judging.page import Key
from mlcalib.judging.win_rates import ALL, Verdict, WinRate, wilson, win_rate

_FORMAT = "mlcalib ratings 1"


@dataclass(frozen=True)
class _Head:
    """What a file of ratings begins with."""

    format: str
    fingerprint: str


@dataclass(frozen=True)
class Rating:
    """One rater's verdict on one pair of answers.

    Attributes:
        rater: who.
        language: of the prompt.
        id: of the prompt.
        verdict: whose answer is better; None where the rater could not judge.
        left_chosen: whether the better answer stood left; None for a tie or no verdict.
    """

    rater: str
    language: str
    id: str
    verdict: Verdict | None
    left_chosen: bool | None


@dataclass(frozen=True)
class Score:
    """What the ratings of one language say.

    Attributes:
        win_rate: of the second model; None where nothing was rated.
        raters: how many rated something.
        skipped: ratings that say "cannot judge".
        rated_twice: items that two raters or more gave a verdict on, which agreement is over.
        alpha: Krippendorff's alpha (nominal: first, second, tie); None where it is not defined.
    """

    win_rate: WinRate | None
    raters: int
    skipped: int
    rated_twice: int
    alpha: float | None


def read_ratings(paths: Sequence[str | Path], key: Key) -> list[Rating]:
    """Read files that the page exported, and tell whose the answers were.

    Args:
        paths: the files; one of each rater.
        key: of the page.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file, not a file of ratings, one of another page, or a rater who is there
            twice.
    """
    if not paths:
        raise ValueError("No file of ratings was given.")
    ratings: list[Rating] = []
    of: dict[str, str | Path] = {}
    for path in paths:
        found = _read(Path(path), key)
        rater = found[0].rater if found else ""
        if rater in of:
            raise ValueError(
                f"{of[rater]} and {path} are both of the rater '{rater}'; give the newer one only."
            )
        if found:
            of[rater] = path
        ratings += found
    return ratings


def score_ratings(ratings: Iterable[Rating]) -> dict[str, Score]:
    """Return what the ratings say per language, and of all languages together under ``all``."""
    by_language: dict[str, list[Rating]] = {}
    for rating in ratings:
        by_language.setdefault(rating.language, []).append(rating)
    scores = {code: _score(found) for code, found in sorted(by_language.items())}
    if len(scores) > 1:
        scores[ALL] = _score([each for found in by_language.values() for each in found])
    return scores


def left_share(ratings: Iterable[Rating]) -> tuple[float, float, float, int] | None:
    """Return how often the left answer was the better one: share, 95 % Wilson interval, n.

    Sides are random, so that a share far from ½ is the raters' habit. None without a decision.
    """
    chosen = [each.left_chosen for each in ratings if each.left_chosen is not None]
    if not chosen:
        return None
    share = sum(chosen) / len(chosen)
    return share, *wilson(share, len(chosen)), len(chosen)


def _score(ratings: Sequence[Rating]) -> Score:
    items: dict[tuple[str, str], list[Verdict]] = {}
    for each in ratings:
        if each.verdict is not None:
            items.setdefault((each.language, each.id), []).append(each.verdict)
    return Score(
        win_rate(items.values()) if items else None,
        len({each.rater for each in ratings}),
        sum(each.verdict is None for each in ratings),
        sum(len(verdicts) > 1 for verdicts in items.values()),
        krippendorff_alpha(items.values()),
    )


def _read(path: Path, key: Key) -> list[Rating]:
    try:
        content = loads(path.read_text(encoding="utf-8"))
        head = as_type(content, _Head)
        if head.format != _FORMAT:
            raise ValueError(f"its format is {head.format!r}, expected '{_FORMAT}'")
    except ValueError as error:
        raise ValueError(
            f"{path} is not a file of ratings that the page exported ({error})."
        ) from error
    if head.fingerprint != key.fingerprint:
        raise ValueError(
            f"{path} is of another page (fingerprint {head.fingerprint[:8]}…, the key's is "
            f"{key.fingerprint[:8]}…); give the key of that page (--key)."
        )
    try:
        ratings = [
            _rating(as_type(content["rater"], str), each, key) for each in content["ratings"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); ask the rater to "
            "export it again."
        ) from error
    if len({(each.language, each.id) for each in ratings}) < len(ratings):
        raise ValueError(f"{path} rates a prompt twice; ask the rater to export it again.")
    return ratings


def _rating(rater: str, rating: Mapping[str, object], key: Key) -> Rating:
    language, name = str(rating["language"]), str(rating["id"])
    swapped = key.swapped[language][name]
    better = rating["better"]
    if better == "skip":
        return Rating(rater, language, name, None, None)
    if better == "tie":
        return Rating(rater, language, name, "tie", None)
    if better not in (0, 1):
        raise ValueError(f"'better' is {better!r}")
    verdict: Verdict = "second" if (better == 1) != swapped else "first"
    return Rating(rater, language, name, verdict, better == rating["left"])
