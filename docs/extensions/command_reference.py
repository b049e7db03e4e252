"""The directive ``commands``: a reference of the command line, made from the commands."""

from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

from mlcalib.cli import app as mlcalib_app


def _section(name: str, command: Any) -> list[str]:
    """Return Markdown: what a command does, its usage, and what it can be given."""
    context = command.context_class(command, info_name=f"mlcalib {name}")
    lines = [f"## mlcalib {name}", "", *(command.help or "").splitlines(), ""]
    lines += ["```text", command.get_usage(context).removeprefix("Usage: "), "```", ""]
    for each in command.params:
        if record := each.get_help_record(context):
            written, meaning = (" ".join(part.split()) for part in record)
            lines += [f"`{written}`", f": {_escaped(meaning)}", ""]
    return lines


def _escaped(text: str) -> str:
    """Return text in which nothing is markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>{}" else letter for letter in text)


class Commands(SphinxDirective):
    """A section for each command of ``mlcalib``, in the order of its help."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        commands = get_command(mlcalib_app).commands.items()
        lines = [line for name, command in commands for line in _section(name, command)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
