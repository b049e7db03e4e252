"""One HTML page, with all that it needs inside, on which people rate pairs of answers blind."""

import base64
import hashlib
import json
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlcalib.common.checked import as_type
from mlcalib.common.files import atomic_file
from mlcalib.common.json_text import loads
from mlcalib.common.templates import environment
from mlcalib.judging.texts import Pair, fingerprint
from mlcalib.languages import language
from mlcalib.results.generations import Source

KEY_SUFFIX = ".key.json"
QUESTION = "Which answer is better?"


@dataclass(frozen=True)
class Key:
    """What a page does not tell its raters.

    Attributes:
        fingerprint: of the page.
        models: where the first and the second answers come from.
        swapped: language → id → whether the page holds the second model's answer first.
    """

    fingerprint: str
    models: tuple[Source, Source]
    swapped: dict[str, dict[str, bool]]


def write_page(
    pairs: Sequence[Pair],
    path: str | Path,
    models: tuple[Source, Source],
    *,
    question: str = QUESTION,
    seed: int = 0,
) -> Path:
    """Write a page for blind pairwise rating, and the key that tells whose the answers are.

    The page works without a server or a network. It names no model, and holds the two answers to
    each prompt in an order that only the key tells. Items and sides come in a random order of each
    rater's own. Ratings are kept in the browser and exported as JSON; ``score_ratings`` reads them.

    Args:
        pairs: the answers.
        path: the page, ``NAME.html``.
        models: where the first and the second answers come from; only in the key.
        question: what raters are asked.
        seed: of all that is random.

    Returns:
        Path of the key: ``NAME.key.json`` beside the page. Raters must not get it.

    Raises:
        ValueError: no pairs.
        FileExistsError: a key is there that is of another page: ratings could need it.
        OSError: the page cannot be written.
    """
    if not pairs:
        raise ValueError("There is nothing to rate: no pair of answers was given.")
    path = Path(path)
    draw = random.Random(f"{seed} sides").random
    swapped: dict[str, dict[str, bool]] = {}
    for each in pairs:
        swapped.setdefault(each.language, {})[each.id] = draw() < 0.5
    mark = fingerprint(pairs, question, str(seed), *map(str, models))
    key = Key(mark, models, swapped)
    key_path = path.with_name(path.stem + KEY_SUFFIX)
    if key_path.exists() and read_key(key_path).fingerprint != mark:
        raise FileExistsError(
            f"{key_path} is the key of another page, without which its ratings cannot be scored; "
            "give another --out, or remove it."
        )
    with atomic_file(key_path) as file:
        json.dump(asdict(key), file, ensure_ascii=False, indent=1)
    with atomic_file(path) as file:
        file.write(_html(_data(pairs, key, question, seed)))
    return key_path


def read_key(path: str | Path) -> Key:
    """Read the key that ``write_page`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a key.
    """
    try:
        return as_type(loads(Path(path).read_text(encoding="utf-8")), Key)
    except ValueError as error:
        raise ValueError(
            f"{path} is not the key of a page; give the {KEY_SUFFIX} file that 'mlcalib annotate' "
            "wrote beside the page."
        ) from error


def direction(text: str, code: str) -> str:
    """Return ``rtl`` or ``ltr``: as most of a text's letters are written.

    A model may answer in another script than it was asked in, or begin with a Latin name, so
    neither the language nor the first letter decides; the language does where no letter does.
    """
    kinds = [unicodedata.bidirectional(character) for character in text]
    right, left = sum(kind in ("R", "AL") for kind in kinds), kinds.count("L")
    if right == left:
        return "rtl" if language(code).right_to_left else "ltr"
    return "rtl" if right > left else "ltr"


def _data(pairs: Sequence[Pair], key: Key, question: str, seed: int) -> dict[str, Any]:
    def shown(text: str, code: str) -> dict[str, str]:
        return {"text": text, "dir": direction(text, code)}

    items = []
    for each in pairs:
        answers = [shown(text, each.language) for text in (each.first, each.second)]
        if key.swapped[each.language][each.id]:
            answers.reverse()
        prompt = shown(each.prompt, each.language)
        items.append(
            {"id": each.id, "language": each.language, "prompt": prompt, "answers": answers}
        )
    return {
        "fingerprint": key.fingerprint,
        "seed": seed,
        "question": question,
        "languages": {code: language(code).name for code in key.swapped},
        "items": items,
    }


def _html(data: dict[str, Any]) -> str:
    """Return the page; the policy lets no script run but the page's own."""
    package = "mlcalib.judging.page"
    style, script = (
        files(package).joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    page = environment(package, {"hash": _hash}).get_template("page.html")
    return page.render(data=data, style=style, script=script)


def _hash(text: str) -> str:
    """Return a script's or style's hash as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
