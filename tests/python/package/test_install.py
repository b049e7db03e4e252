"""What `import mlcalib` does beside a torch that it was not built with."""

import subprocess
import sys

import pytest
import torch

RELEASE = torch.__version__.partition("+")[0]


def import_built_with(version):
    """Import mlcalib in a new process as if it had been built with that torch."""
    code = (
        "import sys, types\n"
        "build = types.ModuleType('mlcalib._build')\n"
        f"build.TORCH_VERSION = {version!r}\n"
        "sys.modules['mlcalib._build'] = build\n"
        "import mlcalib\n"
        "print(mlcalib.__version__)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("built", ["2.0.1+cpu", "2.0.1+cu117", "3.0.0"])
def test_another_torch_is_refused_with_what_to_do(built):
    done = import_built_with(built)
    assert done.returncode == 1
    error = done.stderr.partition("ImportError: ")[2]
    assert f"built with torch {built}, but torch {torch.__version__} is installed" in error
    assert "\n    pip install --no-build-isolation --force-reinstall --no-deps .\n" in error
    assert error.endswith(f"\n    pip install torch=={built.partition('+')[0]}\n")


@pytest.mark.parametrize("local", ["", "+cpu", "+cu130"])
def test_the_same_release_for_another_device_is_accepted(local):
    done = import_built_with(RELEASE + local)
    assert done.returncode == 0, done.stderr
