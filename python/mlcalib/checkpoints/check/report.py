"""What a check found."""

from dataclasses import dataclass
from typing import Literal

from mlcalib.formats import Kind, Verdict
from mlcalib.notebook import html

_LOADS = {True: "should load it", False: "will not load it", None: "may load it"}
_WORDS = {"damaged": "damaged", "unread": "mlcalib cannot read it", "refused": "refused"}
_STATUS = {"damaged": 1, "unread": 3, "refused": 4}  # 2 is a wrong use of the command


@dataclass(frozen=True)
class Finding:
    """One thing that keeps somebody from reading a checkpoint.

    Attributes:
        kind: ``damaged`` (files that are broken, or not what the config says), ``unread`` (whole,
            but mlcalib cannot read it), or ``refused`` (whole, but the readers that the message
            names, in the version that it names, will not load it).
        message: what it is, where, and what was expected.
    """

    kind: Kind
    message: str

    @property
    def level(self) -> Literal["error", "warning"]:
        """``error`` for damage, else ``warning``."""
        return "error" if self.kind == "damaged" else "warning"


@dataclass(frozen=True)
class Report:
    """A checkpoint, looked at.

    Attributes:
        path: the folder or file.
        method: ``quant_method`` of its config, ``gguf``, or "" for an ordinary checkpoint.
        linears: how many linears are quantized.
        findings: damage first, then what mlcalib cannot read, then what readers refuse.
        readers: reader → whether it should load the checkpoint, and why not or what that takes.
        notes: what else to know; it keeps nobody from reading.
    """

    path: str
    method: str
    linears: int
    findings: tuple[Finding, ...]
    readers: dict[str, Verdict]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return all(finding.kind != "damaged" for finding in self.findings)

    @property
    def status(self) -> int:
        """What ``mlcalib check`` ends with: 0, or 1, 3 or 4 by the worst kind of finding."""
        return min((_STATUS[finding.kind] for finding in self.findings), default=0)

    def text(self) -> str:
        """Return all of it, one line each."""
        lines = [self._headline()]
        lines += [f"{_WORDS[finding.kind]}: {finding.message}" for finding in self.findings]
        lines += [f"note: {note}" for note in self.notes]
        if not self.findings:
            lines.append("no errors, no warnings")
        for reader, verdict in self.readers.items():
            loads = _LOADS[verdict.loads]
            lines.append(f"{reader} {loads}" + "".join(f"; {why}" for why in verdict.reasons))
        return "\n".join(lines)

    def _headline(self) -> str:
        kind = self.method or "not quantized"
        return f"{self.path}: {kind}, {self.linears} quantized linears"

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        counts = [
            f"{number} {_WORDS[kind]}"
            for kind in _STATUS
            if (number := sum(finding.kind == kind for finding in self.findings))
        ]
        loads = [reader for reader, verdict in self.readers.items() if verdict.loads]
        return (
            f"Report of {self._headline()}\nfindings: {', '.join(counts) or 'none'}; "
            f"should load it: {', '.join(loads) or 'none of the readers known'}"
        )

    def _repr_html_(self) -> str:
        readers = [
            [reader, _LOADS[verdict.loads], "; ".join(verdict.reasons)]
            for reader, verdict in self.readers.items()
        ]
        found = [
            html.listing((each.message for each in self.findings if each.kind == kind), word)
            for kind, word in _WORDS.items()
        ]
        return html.page(
            html.heading(self._headline()),
            *found,
            html.listing(self.notes, "note"),
            html.listing([] if self.findings else ["no errors, no warnings"]),
            html.table(["reader", "", "why, or what it takes"], readers, texts=3),
        )
