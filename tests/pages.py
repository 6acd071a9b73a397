"""What a report says, read from its HTML."""

from html.parser import HTMLParser

HOSTILE = "<img src=x onerror=alert(1)>&\"'"


class Page(HTMLParser):
    """What a browser would load, and the tables, by identifier, as lists of rows of texts and of values to sort by."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.tables, self.ids, self.tags = [], {}, [], []
        self._table = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.addresses += [given[name] for name in ("src", "href", "data", "action", "poster") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "table":
            self._table = self.tables.setdefault(given["id"], [])
        if tag == "tr" and self._table is not None:
            self._table.append([])
        if tag in ("td", "th") and self._table is not None:
            self._cell = [given.get("data-value", ""), ""]
            self._table[-1].append(self._cell)

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell[1] = " ".join(f"{self._cell[1]} {data}".split())
