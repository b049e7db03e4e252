"""A little text: ids below 360 in two languages, and files in any of three."""

from pathlib import Path

IDS = {
    "en": [[(7 * i + j * j) % 360 for j in range(80)] for i in range(3)],
    "sw": [[(11 * i + 5 * j) % 360 for j in range(50)] for i in range(2)],
}

SENTENCES = {
    "en": "the market opens before sunrise and first buyers are waiting beside road",
    "fr": "le marché ouvre avant aube et premiers acheteurs attendent au bord de la route",
    "sw": "soko hufunguliwa kabla ya jua kuchomoza na wanunuzi wa kwanza wanasubiri kando",
}


def write_texts(root: Path, languages: list[str]) -> Path:
    """Write 40 lines of each language and split, from the words of its sentence."""
    for code in languages:
        words = SENTENCES[code].split()
        (root / code).mkdir()
        for split, start in (("calib", 1), ("eval", 7)):
            lines = [
                " ".join(words[(i * start + j * j) % len(words)] for j in range(9 + i % 5))
                for i in range(40)
            ]
            (root / code / f"{split}.txt").write_text("\n".join(lines))
    return root
