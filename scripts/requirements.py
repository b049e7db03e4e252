"""Print the requirements of pyproject.toml: dependencies, extras and the dev group."""

import tomllib
from pathlib import Path

content = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
extras = content["project"]["optional-dependencies"].values()
wanted = [content["project"]["dependencies"], *extras, content["dependency-groups"]["dev"]]
for requirements in wanted:
    for requirement in requirements:
        if not requirement.startswith("mlcalib"):
            print(requirement)
