"""HTML of objects: escaped, without script, in the colours of the page."""

import pytest
from small_html import Shown

from mlcalib.notebook import html


def test_text_of_others_is_escaped():
    nasty = "<script>alert('x')</script> & <b>"
    shown = Shown(
        html.page(
            html.heading(nasty),
            html.table([nasty, "n"], [[nasty, "1"], ["b", html.strong(nasty)]]),
            html.listing([nasty], nasty),
            html.folded(nasty, html.paragraph(nasty), opened=True),
        )
    )
    assert shown.tables == [[[nasty, "n"], [nasty, "1"], ["b", nasty]]]
    assert shown.text.count(nasty) == 8


@pytest.mark.parametrize(("share", "width"), [(0.25, "25.0%"), (-1, "0.0%"), (7, "100.0%")])
def test_a_bar_stays_within_its_length(share, width):
    assert f"width:{width};" in html.bar(share)
    assert Shown(html.page(html.bar(share, "<"))).text == "<"


def test_nothing_to_list_is_nothing():
    assert html.page(html.listing([], "warning")) == "<div></div>"
