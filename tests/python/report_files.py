"""Reading what a report wrote."""

import csv
import html.parser
from collections import Counter


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Page(html.parser.HTMLParser):
    """What is open, and what is referred to."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.refers, self.tags = [], [], [], Counter()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.refers.append(value)
        if tag != "meta" and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
