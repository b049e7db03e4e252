"""Prints what ran of the pages' blocks, below the tests' results."""

import json


def pytest_terminal_summary(terminalreporter):
    """Count blocks that ran, and list those that did not with their reasons."""
    reports = terminalreporter.getreports("passed")
    said = [dict(report.user_properties) for report in reports if report.when == "call"]
    pages = [json.loads(each["blocks"]) for each in said if "blocks" in each]
    left = [(page["page"], *each) for page in pages for each in page["left"]]
    ran = sum(page["ran"] for page in pages)
    failed = len(terminalreporter.getreports("failed"))
    terminalreporter.section("blocks of code on pages")
    for name, line, reason in sorted(left):
        terminalreporter.line(f"not run: {name}:{line}: {reason}")
    terminalreporter.line(f"{ran} ran, {len(left)} not run, on {len(pages)} pages; {failed} failed")
