"""Runs the blocks of a page one after the other, in one folder and one namespace."""

import ast
import contextlib
import io
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

from mlcalib.cli import main

BIN = Path(sys.executable).parent


class PageRunner:
    """Runs blocks in the current folder.

    Args:
        page: the page's name, for messages.
    """

    def __init__(self, page: str) -> None:
        self.page = page
        self.names: dict[str, Any] = {"__name__": page}
        exec("import json\nfrom pathlib import Path", self.names)

    def run(self, block: Block) -> None:
        """Run a block.

        Raises:
            AssertionError: it failed; the message has the page, the line, and what was printed.
        """
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                exec(block.given, self.names)
                getattr(self, f"_{block.language}")(block)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            told = "".join(traceback.format_exception_only(error)).strip()
            raise AssertionError(
                f"{self.page}:{block.line}: {told}\n{block.code}\n{said.getvalue()[-3000:]}"
            ) from error

    def _python(self, block: Block) -> None:
        """Run statements; expressions on lines of their own are shown, as a notebook shows them."""
        for node in ast.parse(block.code, self.page).body:
            if isinstance(node, ast.Expr):
                value = eval(compile(ast.Expression(node.value), self.page, "eval"), self.names)
                repr(value)
                getattr(value, "_repr_html_", lambda: "")()
            else:
                exec(compile(ast.Module([node], []), self.page, "exec"), self.names)

    def _pycon(self, block: Block) -> None:
        """Run what follows >>>, and compare what is printed; … stands for anything."""
        for source, expected in re.findall(r"^>>> (.*)\n((?:(?!>>> ).*\n)*)", block.code, re.M):
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

    def _bash(self, block: Block) -> None:
        """Run lines of mlcalib in this process, which has imported everything; others by bash."""
        joined = block.code.replace("\\\n", " ").split("\n")
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
            ["bash", "-euo", "pipefail", "-c", block.code],
            capture_output=True, text=True, check=False, env=os.environ | {"PATH": path},
        )  # fmt: skip
        print(done.stdout, done.stderr)
        assert done.returncode == 0, f"exit status {done.returncode}"


def _call(words: list[str]) -> None:
    """Run one command as ``mlcalib`` does."""
    before, sys.argv = sys.argv, words
    try:
        main()
    except SystemExit as end:
        assert not end.code, f"{shlex.join(words)}: exit status {end.code}"
    finally:
        sys.argv = before


def _remove(path: Path) -> None:
    """Remove what an earlier block wrote to the place where this one writes."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
