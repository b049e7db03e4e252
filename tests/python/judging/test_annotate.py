"""The rating page as a file, and files of ratings as raters send them back."""

import json
import re

import pytest

from mlcalib.judging import (
    Pair,
    Source,
    left_share,
    read_key,
    read_ratings,
    score_ratings,
    wilson,
    write_page,
)
from mlcalib.judging.page import direction

PAIRS = [
    Pair(str(number), code, f"prompt {number}", f"answer a{number}", f"answer b{number}")
    for code in ("en", "ar")
    for number in range(40)
]
MODELS = Source("models/base", "float"), Source("models/base-4", "gptq", "multi10")
NASTY = (
    "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> {data} {style} \u2028&amp;"
)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "rate.html"
    return path, write_page(PAIRS, path, MODELS)


def embedded(path):
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    return json.loads(found[1])


def test_the_page_is_blind_and_whole(page):
    path, key_path = page
    text = path.read_text()
    for secret in ("models/", "float", "gptq", "multi10", "swapped"):
        assert secret not in text
    assert not re.search(r"(src|href)=|@import|url\(|https?://|fetch\(|XMLHttp", text)
    key, data = read_key(key_path), embedded(path)
    assert key.models == MODELS
    assert data["fingerprint"] == key.fingerprint
    for item, each in zip(data["items"], PAIRS, strict=True):
        answers = [answer["text"] for answer in item["answers"]]
        if key.swapped[each.language][each.id]:
            answers.reverse()
        assert (item["prompt"]["text"], *answers) == (each.prompt, each.first, each.second)
    swapped = [value for codes in key.swapped.values() for value in codes.values()]
    assert 20 < sum(swapped) < 60


def test_the_same_page_again_and_another(page, tmp_path):
    path, key_path = page
    before = path.read_bytes(), key_path.read_bytes()
    write_page(PAIRS, path, MODELS)
    assert (path.read_bytes(), key_path.read_bytes()) == before
    with pytest.raises(FileExistsError, match="is the key of another page"):
        write_page(PAIRS, path, MODELS, seed=1)
    with pytest.raises(FileExistsError, match="is the key of another page"):
        write_page(PAIRS[:-1], path, MODELS)
    with pytest.raises(ValueError, match="nothing to rate"):
        write_page([], tmp_path / "empty.html", MODELS)


def test_no_text_leaves_its_place(tmp_path):
    path = tmp_path / "rate.html"
    write_page([Pair("<b>", "en", NASTY, NASTY, NASTY)], path, MODELS, question=NASTY)
    item = embedded(path)["items"][0]
    assert item["prompt"]["text"] == item["answers"][0]["text"] == NASTY
    assert embedded(path)["question"] == NASTY
    text = path.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("hello", "en", "ltr"), ("مرحبا", "ar", "rtl"), ("שלום", "he", "rtl"),
        ("你好", "zh", "ltr"),
        ("Duolingo تطبيق جيد لتعلم اللغات.", "ar", "rtl"), ("Sorry, I cannot.", "ar", "ltr"),
        ("", "ar", "rtl"), ("123", "en", "ltr"), ("123 :-)", "fa", "rtl"),
        ("مرحبا", "en", "rtl"),
        ("x = 1", "code", "ltr"),
    ],
)  # fmt: skip
def test_direction(text, code, expected):
    assert direction(text, code) == expected


def export(path, page, rater, choose, languages=("en", "ar")):
    """Write what the page exports; ``choose`` gives ``first``, ``second``, ``tie`` or ``skip``."""
    key, data = read_key(page[1]), embedded(page[0])
    ratings = []
    for item in data["items"]:
        choice = choose(item)
        if item["language"] not in languages or choice is None:
            continue
        swapped = key.swapped[item["language"]][item["id"]]
        better = {"first": int(swapped), "second": int(not swapped)}.get(choice, choice)
        ratings.append(
            {"id": item["id"], "language": item["language"], "better": better, "left": 1,
             "seconds": 2.5, "time": "2026-11-22T12:00:00Z"}
        )  # fmt: skip
    content = {
        "format": "mlcalib ratings 1", "fingerprint": data["fingerprint"], "rater": rater,
        "languages": list(languages), "items": 80, "ratings": ratings,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_scores(page, tmp_path):
    def ada(item):
        return ("first", "second", "second", "tie")[int(item["id"]) % 4]

    def ben(item):
        return {"1": None, "5": "skip", "2": "first"}.get(item["id"], ada(item))

    files = [
        export(tmp_path / "ada.json", page, "ada", ada),
        export(tmp_path / "ben.json", page, "ben", ben, ("en",)),
    ]
    ratings = read_ratings(files, read_key(page[1]))
    scores = score_ratings(ratings)
    assert list(scores) == ["ar", "en", "all"]
    arabic, english = scores["ar"], scores["en"]
    assert (arabic.raters, arabic.rated_twice, arabic.alpha) == (1, 0, None)
    rate = arabic.win_rate
    assert (rate.wins, rate.ties, rate.losses, rate.rate) == (20, 10, 10, 0.625)
    assert (rate.low, rate.high) == wilson(0.625, 40)
    assert (english.raters, english.skipped, english.rated_twice) == (2, 1, 38)
    # 38 items, of which one is judged apart: o = 2·1 pairs of 76; totals 21, 36, 19.
    totals = (21, 35, 20)
    expected = sum(count * (76 - count) for count in totals)
    assert english.alpha == pytest.approx(1 - 75 * 2 / expected)
    assert scores["all"].win_rate.n == 80
    share, low, high, n = left_share(ratings)
    chosen = [each.left_chosen for each in ratings if each.left_chosen is not None]
    assert (share, n) == (sum(chosen) / len(chosen), len(chosen))
    assert low < share < high


def test_what_is_no_file_of_ratings(page, tmp_path):
    key = read_key(page[1])
    good = export(tmp_path / "good.json", page, "ada", lambda _: "tie")
    content = json.loads(good.read_text())

    def check(message, change, *others):
        path = tmp_path / "bad.json"
        path.write_text(change if isinstance(change, str) else json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message):
            read_ratings([path, *others], key)

    check("is not a file of ratings", "{}")
    check("is not a file of ratings", "hello")
    check("is not a file of ratings", {"format": "other"})
    check("is of another page", {"fingerprint": "0" * 64})
    check("is not a file of ratings", "[" * 500 + "]" * 500)
    check("is not a file of ratings", {"fingerprint": 3})
    check("is damaged", {"rater": ["ada"]})
    check("is damaged", {"ratings": "ab"})
    check("is damaged", {"ratings": [{"id": "1"}]})
    check("is damaged", {"ratings": [{**content["ratings"][0], "id": "nowhere"}]})
    check("is damaged", {"ratings": [{**content["ratings"][0], "better": 2}]})
    check("twice", {"ratings": content["ratings"][:1] * 2})
    check("both of the rater 'ada'", {}, good)
    with pytest.raises(ValueError, match="No file of ratings"):
        read_ratings([], key)
    with pytest.raises(ValueError, match="is not the key of a page"):
        read_key(good)
    whole = json.loads(page[1].read_text())
    for change in ({"swapped": {"en": 1}}, {"models": [1, 2]}, {"fingerprint": 1}, {"models": []}):
        (tmp_path / "bad.key.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=r"bad\.key\.json is not the key of a page"):
            read_key(tmp_path / "bad.key.json")
