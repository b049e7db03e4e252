"""Every block of code on the site and in the README runs, or says why it does not."""

import json
import random

import pytest
import torch
from page_blocks import DOCS, RUN, Block, blocks, pages
from page_runner import PageRunner
from small_models import tiny_llama

PAGES = {page.relative_to(DOCS.parent).as_posix(): page for page in pages()}
LANGUAGES = ("en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha", "code", "math")
CHARACTERS = {"zh": "市场在日出前开门第一批买家已经在路边等候"}


@pytest.fixture(scope="session")
def shelf(tokenizer, tmp_path_factory):
    """MODEL, a tiny random Llama with its tokenizer, and TEXT, random words in ten languages."""
    folder = tmp_path_factory.mktemp("pages")
    model = tiny_llama(vocabulary=384, hidden=128, intermediate=256, dtype=torch.float16)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder / "MODEL")
    tokenizer.save_pretrained(folder / "MODEL")
    for language in LANGUAGES:
        (folder / "TEXT" / language).mkdir(parents=True)
        draw = random.Random(language)
        for split, documents in (("calib", 300), ("eval", 60)):
            lines = [_document(draw, CHARACTERS.get(language)) for _ in range(documents)]
            (folder / "TEXT" / language / f"{split}.txt").write_text("\n".join(lines), "utf-8")
    return folder


def _document(draw, letters):
    letters, joint = (letters, "") if letters else ("abdefghijklmnoprstuwy", " ")
    words = ("".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(40))
    return joint.join(words)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES)
def test_blocks(page, shelf, tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL", "TEXT"):
        (tmp_path / name).symlink_to(shelf / name)
    runner, ran, left = PageRunner(page), 0, []
    for block in blocks(PAGES[page].read_text(encoding="utf-8")):
        if block.language not in RUN:
            continue
        if block.reason:
            left.append((block.line, block.reason))
        else:
            runner.run(block)
            ran += 1
    record_property("blocks", json.dumps({"page": page, "ran": ran, "left": left}))


def test_what_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = PageRunner("a page")
    runner.run(Block(1, "python", "x = 1\n"))
    runner.run(Block(4, "pycon", ">>> x + 1\n2\n>>> 1 / 0\nZeroDivisionError: …\n"))
    runner.run(Block(5, "bash", "mlcalib languages multi10\necho > FILE\n"))
    assert (tmp_path / "FILE").exists()
    for block, message in (
        (Block(7, "python", "x.y\n"), r"a page:7: AttributeError"),
        (Block(8, "pycon", ">>> x\n2\n"), r"a page:8: .*expected 2\n, got 1"),
        (Block(9, "bash", "mlcalib languages nowhere\n"), r"a page:9: .*exit status 1"),
        (Block(9, "bash", "cat NOWHERE\n"), r"a page:9: .*exit status 1"),
        (Block(9, "python", "x\n", given="raise OSError('full')"), r"a page:9: OSError: full"),
    ):
        with pytest.raises(AssertionError, match=message):
            runner.run(block)


def test_comments_before_blocks():
    text = (
        "<!-- not run: it needs a GPU -->\n\n```bash\nmake\n```\n\n```text\nx\n```\n"
        "<!-- given:\nx = 1\ny = 2\n-->\n```python\nx\n```\n```{toctree}\nx\n```\n"
    )
    assert blocks(text) == [
        Block(3, "bash", "make\n", reason="it needs a GPU"),
        Block(7, "text", "x\n"),
        Block(14, "python", "x\n", given="x = 1\ny = 2"),
    ]
    for wrong, message in (
        ("```\nx\n```", "line 1: a block of ''"),
        ("<!-- not run: slow -->\ntext", "line 2: a comment .* before none"),
        ("<!-- not run: slow -->\n```text\nx\n```", "line 2: a block of 'text' is never run"),
    ):
        with pytest.raises(ValueError, match=message):
            blocks(wrong)
