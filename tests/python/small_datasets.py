"""Small data sets, laid out like those on the Hugging Face hub."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq

C4 = {"en": "en/c4-{}", "sw": "multilingual/c4-sw{}", "he": "multilingual/c4-iw{}"}


def sentences(language, start, count):
    """Documents of a few sentences, all different."""
    body = {
        "en": "The market number {} opens before sunrise. The buyers are waiting. ",
        "sw": "Soko la {} hufunguliwa kabla ya jua kuchomoza. Wanunuzi wanasubiri. ",
        "he": "שוק מספר {} נפתח לפני הזריחה. הקונים מחכים. ",
    }[language]
    return [body.format(number) * (1 + number % 3) for number in range(start, start + count)]


def write_card(root, configs):
    """Write the README.md with which a data set says which files make a configuration's splits."""
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))


def make_c4(root, shards=3, documents=20):
    """allenai/c4: gzipped JSON lines, several files to a split; English apart from the others."""
    configs = {}
    for language, pattern in C4.items():
        train = pattern.format("train" if language == "en" else "")
        validation = pattern.format("validation" if language == "en" else "-validation")
        for shard in range(shards):
            texts = [*sentences(language, shard * documents, documents), " "]
            write_gzip(root / f"{train}.{shard:05}.json.gz", texts)
        write_gzip(root / f"{validation}.00000.json.gz", sentences(language, 1000, 8))
        code = "iw" if language == "he" else language
        configs[code] = {
            "train": f"{train}.*.json.gz",
            "validation": f"{validation}.*.json.gz",
        }
    write_card(root, configs)
    return root


def make_wikipedia(root, documents=100, date="20231101"):
    """wikimedia/wikipedia: Parquet, one split; configurations called by date and edition."""
    for language in ("en", "sw"):
        texts = sentences(language, 0, documents)
        columns = {name: [f"{name} {number}" for number in range(documents)] for name in "ab"}
        folder = root / f"{date}.{language}"
        folder.mkdir(parents=True)
        table = pa.table({**columns, "text": texts})
        pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=10)
    write_card(
        root,
        {f"{date}.{code}": {"train": f"{date}.{code}/train-*"} for code in ("en", "sw")},
    )
    return root


def write_gzip(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for text in texts:
            row = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"}
            file.write(json.dumps(row) + "\n")
