"""The plug-ins of the pages docs/how-to/add-a-….md as files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("add-a-quantizer.md", "add-a-format.md", "add-a-model.md")


def _text() -> str:
    return "\n".join((ROOT / "docs/how-to" / page).read_text(encoding="utf-8") for page in PAGES)


def plugin_files() -> dict[str, str]:
    """Return name → content of each example, which starts with its name in a comment."""
    pattern = r"^```\w+\n(?:#|//) (\w+\.\w+)\n(.*?)^```$"
    blocks = re.findall(pattern, _text(), re.MULTILINE | re.DOTALL)
    return {name: content for name, content in blocks if name.endswith((".py", ".cpp"))}


def entry_points() -> str:
    """Return the table of entry points, as in an installed package's metadata."""
    table = re.search(r"^```toml\n(.*?)^```$", _text(), re.MULTILINE | re.DOTALL)[1]
    return table.replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
