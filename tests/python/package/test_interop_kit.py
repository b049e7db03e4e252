"""The kit of make test-interop writes files with mlcalib, which moves on between two runs of it."""

import runpy
from pathlib import Path

import pytest

KIT = Path(__file__).parents[3] / "scripts" / "interop"


@pytest.mark.parametrize("script", ["write.py", "gguf_families.py", "gguf_classes.py", "table.py"])
def test_what_the_kit_takes_from_mlcalib_is_there(script):
    runpy.run_path(str(KIT / script), run_name="kit")
