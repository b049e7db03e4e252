"""``mlcalib.check``: is a checkpoint whole, and who can read it."""

from mlcalib.checking.beforehand import foresee
from mlcalib.checking.checks import check
from mlcalib.checking.readers import Facts, Verdict, verdicts
from mlcalib.checking.report import Finding, Report

__all__ = ["Facts", "Finding", "Report", "Verdict", "check", "foresee", "verdicts"]
