"""``mlcalib.check``: is a checkpoint whole, and who can read it."""

from mlcalib.checkpoints.check.beforehand import foresee
from mlcalib.checkpoints.check.checks import check, verdicts
from mlcalib.checkpoints.check.report import Finding, Report
from mlcalib.formats import Facts, Verdict

__all__ = ["Facts", "Finding", "Report", "Verdict", "check", "foresee", "verdicts"]
