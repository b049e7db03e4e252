"""A statistic added as one file to a copy of the tree, compiled, and found."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from plugin_files import ROOT, plugin_files

BUILD = ROOT / "build/release"
CORE = Path(f"cpp/bindings/_core{sysconfig.get_config_var('EXT_SUFFIX')}")
OBJECT = "cpp/CMakeFiles/mlcalib_core.dir/src/statistics/fourth.cpp.o"

# With the core that has the new statistic in place of the one that is installed.
PROGRAM = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("mlcalib._core", sys.argv[1])
core = sys.modules["mlcalib._core"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
from mlcalib.statistics import StatisticSet
x = torch.linspace(-2, 2, 40).reshape(10, 4)
kept = StatisticSet(["gram", "fourth"], 4)
kept.update(x[:3])
kept.update(x[3:])
kept.rescale(torch.full((4,), 2.0))
torch.testing.assert_close(kept.state("fourth")["sum"], (2 * x.double()).pow(4).sum(0))
print(*core.statistic_names())
"""


def tool(name: str) -> str | None:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def built_for_this_python() -> bool:
    """Whether ``make install`` left objects that were compiled with the torch at hand."""
    torch_built_with = f'TORCH_VERSION = "{torch.__version__}"'
    build = BUILD / "cpp/bindings/_build.py"
    return (BUILD / CORE).is_file() and torch_built_with in build.read_text()


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), check=False, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def tree(tmp_path):
    """A copy of what CMake reads, with one file more."""
    if not (built_for_this_python() and tool("cmake") and tool("ninja")):
        pytest.skip("needs build/release, made by make install with this Python's torch")
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("cmake", "cpp"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "cpp/src/statistics/fourth.cpp").write_text(plugin_files()["fourth.cpp"])
    return tmp_path


def test_a_new_statistic_is_one_file(tree):
    run(
        tool("cmake"), "-S", tree, "-B", tree / "build", "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Release", "-DMLCALIB_CUDA=OFF", cwd=tree,
    )  # fmt: skip
    run(tool("cmake"), "--build", tree / "build", "--target", OBJECT, cwd=tree)

    # The other objects are those of the build at hand, whose link takes the new one too.
    link = run(tool("ninja"), "-t", "commands", "-s", CORE, cwd=BUILD).replace(
        f" -o {CORE} ", f" -o {tree / 'core.so'} {tree / 'build' / OBJECT} "
    )
    run("bash", "-c", link, cwd=BUILD)
    names = run(sys.executable, "-c", PROGRAM, tree / "core.so", cwd=tree).split()
    assert {"fourth", "gram"} <= set(names)
