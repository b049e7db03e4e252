"""The plug-ins of docs/plugins.md as files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def plugin_files() -> dict[str, str]:
    """Return name → content of each example, which starts with its name in a comment."""
    page = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n(?:#|//) (\w+\.\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return dict(blocks)


def entry_points() -> str:
    """Return the page's table of entry points, as in an installed package's metadata."""
    page = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    table = re.search(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    return table.replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
