"""Small hand-written files with the field names of the data sets, for every benchmark task."""

import json
from pathlib import Path
from typing import Any

_MMLU = {"option_a": "one", "option_b": "two", "option_c": "three", "option_d": "four"}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def xnli() -> list[dict[str, Any]]:
    premise = "Soko hufunguliwa kabla ya jua kuchomoza."
    hypotheses = ["Soko hufunguliwa mapema.", "Wanunuzi ni wengi.", "Soko limefungwa."]
    rows = [
        {"premise": premise, "hypothesis": text, "label": label}
        for label, text in enumerate(hypotheses)
    ]
    return [*rows, {"premise": "Barabara ni ndefu.", "hypothesis": "Ni fupi.", "label": 2}]


def xstorycloze() -> list[dict[str, Any]]:
    return [
        {
            "story_id": str(number),
            "input_sentence_1": "The market opens.",
            "input_sentence_2": "Buyers wait.",
            "input_sentence_3": "The road is long.",
            "input_sentence_4": f"Number {number} comes.",
            "sentence_quiz1": "They buy fish.",
            "sentence_quiz2": "The moon is made of paper.",
            "answer_right_ending": 1 + number % 2,
        }
        for number in range(3)
    ]


def xcopa() -> list[dict[str, Any]]:
    return [
        {
            "premise": f"Wanunuzi {number} wanasubiri.",
            "choice1": "Soko limefungwa.",
            "choice2": "Jua linachomoza.",
            "question": ("cause", "effect")[number % 2],
            "label": number % 2,
            "idx": number,
            "changed": False,
        }
        for number in range(3)
    ]


def belebele() -> list[dict[str, Any]]:
    return [
        {
            "link": "https://example.org/market",
            "question_number": number,
            "flores_passage": "The market opens before sunrise and the buyers wait.",
            "question": f"When does it open, question {number}?",
            **{f"mc_answer{k}": text for k, text in enumerate(("noon", "dawn", "dusk", "no"), 1)},
            "correct_answer_num": str(1 + number),
            "dialect": "sot_Latn",
            "ds": "2023-05-03",
        }
        for number in range(3)
    ]


def global_mmlu(subjects: tuple[str, ...], field: str) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": f"{subject}/test/{number}",
            field: subject,
            "question": f"How many of {subject} in {number}?",
            **_MMLU,
            "answer": "ABCD"[number],
        }
        for subject in subjects
        for number in range(2)
    ]


def mmmlu() -> list[dict[str, Any]]:
    return [
        {
            "Question": f"How many in {number}?",
            **dict(zip("ABCD", _MMLU.values(), strict=True)),
            "Answer": "ABCD"[number],
            "Subject": subject,
        }
        for subject in ("virology", "anatomy_test.csv_sw-KE.csv")
        for number in range(2)
    ]


def afrimmlu() -> list[dict[str, Any]]:
    return [
        {
            "subject": "elementary_mathematics",
            "question": f"How many in {number}?",
            "choices": str(list(_MMLU.values())),
            "answer": "ABCD"[number],
        }
        for number in range(2)
    ]


def mgsm() -> list[dict[str, Any]]:
    return [
        {
            "question": f"One fish and {number} fish are how many fish?",
            "answer": None,
            "answer_number": 1 + number,
            "equation_solution": None,
        }
        for number in range(2)
    ]


def flores(language: str) -> list[dict[str, Any]]:
    text = {"eng_Latn": "The market opens.", "zho_Hans": "市场在日出前开门。"}
    sentence = text.get(language, "Soko hufunguliwa kabla ya jua.")
    return [{"id": number, "sentence": f"{sentence} {number}"} for number in (1, 2, 5)]


def write_all(folder: Path) -> Path:
    """Write a file of every task, for some languages; return the folder."""
    for code in ("sw", "zh"):
        _write(folder / "xnli" / code / "validation.jsonl", xnli())
    _write(folder / "xstorycloze" / "sw" / "eval.jsonl", xstorycloze())
    _write(folder / "xcopa" / "sw" / "test.jsonl", xcopa())
    _write(folder / "belebele" / "sot_Latn.jsonl", belebele())
    _write(folder / "afrixnli" / "xho" / "test.jsonl", xnli())
    _write(folder / "afrimmlu" / "xho" / "test.jsonl", afrimmlu())
    lite = global_mmlu(("STEM", "Social Sciences"), "subject_category")
    _write(folder / "global_mmlu" / "sw" / "test.jsonl", lite)
    full = global_mmlu(("virology", "high_school_us_history"), "subject")
    _write(folder / "global_mmlu_full" / "ig" / "test.jsonl", full)
    _write(folder / "mmmlu" / "sw" / "test.jsonl", mmmlu())
    _write(folder / "mgsm" / "sw" / "test.jsonl", mgsm())
    for code in ("eng_Latn", "swh_Latn", "zho_Hans"):
        _write(folder / "flores200" / code / "devtest.jsonl", flores(code))
    article = "Soko hufunguliwa kabla ya jua kuchomoza. " * 60
    summary = {"id": "1", "title": "Soko", "text": article, "summary": "Soko hufunguliwa mapema."}
    _write(folder / "xlsum" / "swahili.jsonl", [summary, {**summary, "id": "2"}])
    for setting in ("monolingual", "crosslingual"):
        prompt = {"id": 0, "task": setting, "prompt": "市场在哪里。", "language": "zh"}
        path = folder / "language_confusion" / setting / "okapi" / "zh.jsonl"
        _write(path, [{**prompt, "source": "okapi"}] * 3)
    dolly = {"inputs": "Soko ni nini?", "targets": "Ni mahali.", "language": "swh"}
    _write(folder / "dolly" / "swh_Latn.jsonl", [dolly, dolly])
    return folder
