"""Print requirements of pyproject.toml, one a line, for `pip install --requirement`.

    python scripts/requirements.py GROUP     # a dependency group, with all that it includes
    python scripts/requirements.py oldest    # NAME==FLOOR of all that mlcalib runs with

`demo` is what `make demo` needs and no more; `dev` has tests, linters and notebooks too; `torch` is
the torch that is developed with.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
RUN = [line for line in PROJECT["project"]["dependencies"] if not line.startswith("torch")]


def expand(requirement: str | dict[str, str]) -> list[str]:
    """Replace `mlcalib[extra, …]` and `{include-group = …}` by what they stand for."""
    if isinstance(requirement, dict):
        return group(requirement["include-group"])
    if found := re.fullmatch(r"mlcalib(?:\[(.+)\])?", requirement):
        extras = found[1].split(",") if found[1] else []
        return RUN + [line for extra in extras for line in EXTRAS[extra.strip()]]
    return [requirement]


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return [line for requirement in GROUPS[name] for line in expand(requirement)]


def oldest() -> list[str]:
    """Return the lowest version that is admitted of each package that mlcalib runs with."""
    floors = []
    for line in RUN + [line for lines in EXTRAS.values() for line in lines]:
        floor = re.match(r"(?P<name>[\w-]+)(\[[\w,]+\])?>=(?P<version>[\d.]+)", line)
        assert floor, f"'{line}' of pyproject.toml names no lowest version"
        floors.append(f"{floor['name']}=={floor['version']}")
    return floors


def everything() -> list[str]:
    """Return the requirements of all groups."""
    return list(dict.fromkeys(line for name in GROUPS for line in group(name)))


def main() -> None:
    """Print what was asked for."""
    (what,) = sys.argv[1:]
    print(*dict.fromkeys(oldest() if what == "oldest" else group(what)), sep="\n")


if __name__ == "__main__":
    main()
