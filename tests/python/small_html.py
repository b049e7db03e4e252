"""What a notebook is given to show, read back: its tables, and its text."""

from html.parser import HTMLParser

ALLOWED = {"div", "span", "strong", "table", "tr", "td", "th", "details", "summary"}
COLOURS = ("color", "background")


class Shown(HTMLParser):
    """Reads HTML, and refuses scripts, colours of its own and elements that are not closed.

    Attributes:
        tables: rows of the text of cells, for each table.
        text: all text.
        strong: texts that stand out.
    """

    def __init__(self, html):
        super().__init__()
        assert type(html) is str
        self.tables, self.strong, self.text = [], [], ""
        self._open = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert tag in ALLOWED
        self._open.append(tag)
        for name, value in attributes:
            assert name in ("style", "open")
            for part in (value or "").split(";"):
                key, _, given = part.partition(":")
                assert key.strip() not in COLOURS or given.strip() == "currentColor"
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "strong" in self._open:
            self.strong.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
