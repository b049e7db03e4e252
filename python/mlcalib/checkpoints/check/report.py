"""What a check found."""

from dataclasses import dataclass
from typing import Literal

from mlcalib.formats import Verdict

_LOADS = {True: "should load it", False: "will not load it", None: "may load it"}


@dataclass(frozen=True)
class Finding:
    """One thing to know of a checkpoint.

    Attributes:
        level: ``error`` (damaged, or not what its config says) or ``warning``.
        message: what it is, where, and what was expected.
    """

    level: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class Report:
    """A checkpoint, looked at.

    Attributes:
        path: the folder or file.
        method: ``quant_method`` of its config, ``gguf``, or "" for an ordinary checkpoint.
        linears: how many linears are quantized.
        findings: errors first.
        readers: reader → whether it should load the checkpoint, and why not or what that takes.
    """

    path: str
    method: str
    linears: int
    findings: tuple[Finding, ...]
    readers: dict[str, Verdict]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    def text(self) -> str:
        """Return all of it, one line each."""
        kind = self.method or "not quantized"
        lines = [f"{self.path}: {kind}, {self.linears} quantized linears"]
        lines += [f"{finding.level}: {finding.message}" for finding in self.findings]
        if not self.findings:
            lines.append("no errors, no warnings")
        for reader, verdict in self.readers.items():
            loads = _LOADS[verdict.loads]
            lines.append(f"{reader} {loads}" + "".join(f"; {why}" for why in verdict.reasons))
        return "\n".join(lines)
