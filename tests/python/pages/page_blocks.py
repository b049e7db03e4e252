"""The blocks of code of a page, and what comments before them say of how to run them."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"
RUN = ("bash", "python", "pycon")
SHOWN = ("cpp", "text", "toml", "yaml")
_COMMENT = re.compile(r"<!-- (?P<kind>not run|given):\s+(?P<text>.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        line: where it begins, counted from 1.
        language: as the page says.
        code: its lines.
        reason: why it is not run; empty where it is.
        given: Python that runs before it.
    """

    line: int
    language: str
    code: str
    reason: str = ""
    given: str = ""


def pages() -> list[Path]:
    """Return the pages of the site and the README, whose blocks are run like theirs."""
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page in their order; directives (```{name}) are none.

    Raises:
        ValueError: a block has no language, or one that is neither run nor shown; a comment stands
            before no block, or a reason before one that would not be run anyway.
    """
    found, said, at = [], {}, 0
    lines = text.split("\n")
    while at < len(lines):
        if lines[at].startswith("<!-- "):
            end = next(i for i in range(at, len(lines)) if lines[i].rstrip().endswith("-->"))
            if comment := _COMMENT.fullmatch("\n".join(lines[at : end + 1]).strip()):
                said[comment["kind"]] = comment["text"]
            at = end + 1
        elif lines[at].startswith("```"):
            language = lines[at].removeprefix("```").strip()
            end = next(i for i in range(at + 1, len(lines)) if lines[i].rstrip() == "```")
            if not language.startswith("{"):
                code = "\n".join(lines[at + 1 : end]) + "\n"
                found.append(_block(at + 1, language, code, said))
            said, at = {}, end + 1
        elif lines[at].strip() and said:
            raise ValueError(f"line {at + 1}: a comment on how to run a block stands before none")
        else:
            at += 1
    return found


def _block(line: int, language: str, code: str, said: dict[str, str]) -> Block:
    if language not in RUN + SHOWN:
        raise ValueError(
            f"line {line}: a block of '{language}'; expected one that is run ({', '.join(RUN)}) or "
            f"one that is shown ({', '.join(SHOWN)})"
        )
    if language in SHOWN and said:
        raise ValueError(
            f"line {line}: a block of '{language}' is never run; leave the comment out"
        )
    return Block(line, language, code, said.get("not run", ""), said.get("given", ""))
