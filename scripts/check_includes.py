"""Check who includes whom in cpp/ (layers: docs/design/architecture.md), and what is exported."""

import re
import sys
from pathlib import Path

CPP = Path(__file__).parent.parent / "cpp"
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)
EXPORTED = "namespace MLCALIB_API mlcalib {"

# Files, what they may include, and why nothing else.
RULES = [
    (
        "src/cpu/kernels/kernels.*",
        r"kernels\.hpp|\.\./\.\./grid_shape\.hpp|cstdint",
        "kernels are compiled with -m flags and must be free of std and ATen code",
    ),
    (
        "src/cuda/kernels/*",
        r"(arithmetic|kernels|\.\./\.\./(decisions|histogram))\.hpp|launch\.cuh|cuda_(runtime|fp16)\.h|cst(dint|ring)",
        "kernels are compiled by nvcc, and by the tests as C++, without torch",
    ),
    (
        "include/**/*.hpp",
        r"(ATen|c10|mlcalib)/.*|\w+",
        "public headers include ATen, c10, std and each other",
    ),
    (
        "bindings/*.?pp",
        r"(mlcalib|torch/csrc|c10)/.*|module\.hpp|\w+",
        "bindings see public headers only",
    ),
    ("src/c*/*.?pp", r"(?!.*check\.hpp).*", "arguments are checked by the fronts"),
    (
        "**/*.?pp",
        r"(?!torch/(torch|extension)\.h|ATen/ATen\.h).*",
        "it costs many seconds a file; include the headers of the ops that are used",
    ),
]


def problems() -> list[str]:
    """Return one line per include that the layers forbid."""
    return [
        f"{file.relative_to(CPP.parent)} includes {included}: {why}"
        for files, allowed, why in RULES
        for file in sorted(CPP.glob(files))
        for included in INCLUDE.findall(file.read_text(encoding="utf-8"))
        if not re.fullmatch(allowed, included)
    ]


def hidden() -> list[str]:
    """Return one line per public header whose names libmlcalib.so would not export."""
    headers = set((CPP / "include" / "mlcalib").glob("*.hpp"))
    nothing_to_export = {
        CPP / "include" / "mlcalib" / name for name in ("export.hpp", "numbers.hpp")
    }
    return [
        f"{header.relative_to(CPP.parent)} does not open '{EXPORTED}' (export.hpp)"
        for header in sorted(headers - nothing_to_export)
        if EXPORTED not in header.read_text(encoding="utf-8")
    ]


if __name__ == "__main__":
    found = problems() + hidden()
    print("\n".join(found) or "includes: the layers hold")
    sys.exit(bool(found))
