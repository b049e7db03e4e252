"""Check who includes whom in cpp/: the layers of docs/architecture.md."""

import re
import sys
from pathlib import Path

CPP = Path(__file__).parent.parent / "cpp"
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)


def problems() -> list[str]:
    """Return one line per include that the layers forbid."""
    found = []
    for file in sorted([*CPP.rglob("*.hpp"), *CPP.rglob("*.cpp")]):
        where = file.relative_to(CPP)
        for included in INCLUDE.findall(file.read_text(encoding="utf-8")):
            if reason := forbidden(where, included):
                found.append(f"cpp/{where} includes {included}: {reason}")
    return found


def forbidden(where: Path, included: str) -> str | None:
    """Say why a file may not include another, or None."""
    whole_torch = included in ("torch/torch.h", "torch/extension.h", "ATen/ATen.h")
    if whole_torch:
        return "costs many seconds a file; include the headers of the ops that are used"
    part = where.parts
    in_kernels = part[:3] == ("src", "cpu", "kernels")
    if in_kernels and part[-1].startswith("kernels.") and included not in ("kernels.hpp", "cstdint"):
        return "kernels are compiled with -m flags and must be free of std and ATen code"
    if part[0] == "include" and not included.startswith(("ATen/", "c10/", "mlcalib/")):
        if "/" in included or included.endswith(".hpp"):
            return "public headers include ATen, c10, std and each other only"
    if part[0] == "bindings" and not included.startswith(("mlcalib/", "torch/", "c10/")):
        if included != "module.hpp" and ("/" in included or included.endswith(".hpp")):
            return "bindings see public headers only"
    if part[:2] == ("src", "cpu") and included.endswith("check.hpp"):
        return "arguments are checked by the fronts"
    return None


if __name__ == "__main__":
    lines = problems()
    print("\n".join(lines) or "includes: the layers hold")
    sys.exit(bool(lines))
