"""Runs the blocks of a page one after the other, in one folder and one namespace."""

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from page_blocks import Block
from small_tasks import write_all

import mlcalib
from mlcalib.cli import main
from mlcalib.models.loading import load_model, load_tokenizer

BIN = Path(sys.executable).parent


def checkpoint(folder: str, method: str = "gptq") -> None:
    """Quantize MODEL into a folder."""
    text = mlcalib.calibration("MODEL", "multi10", "files:TEXT", tokens=1280, seq_len=128)
    mlcalib.quantize("MODEL", text, method=method, group_size=64, progress=False).save(folder)


def loaded(model: str) -> tuple[Any, Any]:
    """Return a model with dense weights, and its tokenizer."""
    return load_model(model), load_tokenizer(model)


def benchmark_files(folder: str) -> None:
    """Write a small file of each benchmark task, for some languages."""
    write_all(Path(folder))


HELPERS = {"checkpoint": checkpoint, "loaded": loaded, "benchmark_files": benchmark_files}


class PageRunner:
    """Runs blocks in the current folder.

    What runs before a block (``given``) also has ``HELPERS``, ``json`` and ``Path``.

    Args:
        page: the page's name, for messages.
    """

    def __init__(self, page: str) -> None:
        self.page = page
        self.names: dict[str, Any] = {"__name__": page, "json": json, "Path": Path, **HELPERS}

    def run(self, block: Block) -> None:
        """Run a block, on a 32nd of the tokens where it asks for 10,000 or more.

        Raises:
            AssertionError: it failed; the message has the page, the line, and what was printed.
        """
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                exec(block.given, self.names)
                getattr(self, f"_{block.language}")(_shorter(block.code))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            told = "".join(traceback.format_exception_only(error)).strip()
            raise AssertionError(
                f"{self.page}:{block.line}: {told}\n{block.code}\n{said.getvalue()[-3000:]}"
            ) from error

    def _python(self, code: str) -> None:
        """Run statements; expressions on lines of their own are shown, as a notebook shows them."""
        for node in ast.parse(code, self.page).body:
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), self.page, "eval"), self.names)
                repr(value)
                getattr(value, "_repr_html_", lambda: "")()
            else:
                exec(compile(ast.Module([node], []), self.page, "exec"), self.names)

    def _pycon(self, code: str) -> None:
        """Run what follows >>>, and compare what is printed; … stands for anything."""
        for source, expected in re.findall(r"^>>> (.*)\n((?:(?!>>> ).*\n)*)", code, re.M):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                try:
                    exec(compile(source, self.page, "single"), self.names)
                except Exception as error:
                    print(f"{type(error).__name__}: {error}")
            pattern = re.escape(expected.strip()).replace("…", ".*")
            assert re.fullmatch(pattern, said.getvalue().strip(), re.DOTALL), (
                f"expected {expected}, got {said.getvalue()}"
            )

    def _bash(self, code: str) -> None:
        """Run lines of mlcalib in this process, which has imported everything; others by bash."""
        joined = code.replace("\\\n", " ").split("\n")
        commands = [words for line in joined if (words := shlex.split(line, comments=True))]
        for words in commands:
            if "--out" in words:
                _remove(Path(words[words.index("--out") + 1]))
        if all(words[0] == "mlcalib" for words in commands):
            for words in commands:
                _call(words)
            return
        path = f"{BIN}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            capture_output=True, text=True, check=False, env=os.environ | {"PATH": path},
        )  # fmt: skip
        print(done.stdout, done.stderr)
        assert done.returncode == 0, f"exit status {done.returncode}"


def _shorter(code: str) -> str:
    return re.sub(r"(?<=tokens[ =])\d{5,}", lambda found: str(int(found[0]) // 32), code)


def _call(words: list[str]) -> None:
    """Run one command as ``mlcalib`` does."""
    before, sys.argv, status = sys.argv, words, None
    try:
        main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = before
    assert not status, f"{shlex.join(words)}: exit status {status}"


def _remove(path: Path) -> None:
    """Remove what an earlier block wrote to the place where this one writes."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
