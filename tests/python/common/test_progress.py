"""Progress in logs: a line every so often, with what is left."""

import re
import sys

import pytest
from tqdm.auto import tqdm

from mlcalib.common import progress
from mlcalib.common.progress import LogLines, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """Return the seconds that have passed, which the test moves on."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_has_a_line_every_half_minute(clock, capsys):
    with progress_bar(total=40, initial=4, desc="quantizing", unit="block") as bar:
        assert isinstance(bar, LogLines)
        for done in range(5, 41):
            clock[0] += 10
            bar.set_postfix_str(f"loss/token {done}", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert (
        lines[0] == "quantizing: 7 of 40 blocks (18%), 00:30 spent, about 05:30 left, loss/token 7"
    )
    assert lines[-1] == "quantizing: 40 of 40 blocks (100%), 06:00 spent, loss/token 40"


def test_short_work_is_one_line(clock, capsys):
    for _ in progress_bar([1, 2, 3], desc="generating"):
        clock[0] += 1
    assert capsys.readouterr().err == "generating: 3 of 3 (100%), 00:03 spent\n"


def test_what_ends_early_says_how_far_it_came(clock, capsys):
    def work():
        with progress_bar(total=8, desc="gradients", unit="block") as bar:
            bar.update()
            clock[0] += 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    line = "gradients: 1 of 8 blocks (12%), 00:03 spent, about 00:21 left\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("options", [{"disable": True}, {}, {"initial": 3}])
def test_nothing_is_said_of_nothing(options, capsys):
    with progress_bar(total=8, desc="quantizing", **options) as bar:
        if options.get("disable"):
            bar.update()
    assert capsys.readouterr().err == ""


def test_without_a_total(clock, capsys):
    with progress_bar(desc="reading", unit=" documents") as bar:
        bar.update(5)
    assert capsys.readouterr().err == "reading: 5 documents, 00:00 spent\n"


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(total=2, desc="quantizing") as bar:
        assert type(bar) is tqdm
        bar.update()
    assert re.search(r"quantizing: +50%\|", capsys.readouterr().err)
