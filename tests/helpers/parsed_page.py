"""A page of ours as `html.parser` reads it: elements with their attributes, and the text in them."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "input", "hr", "base", "source", "embed"}


class Element:
    def __init__(self, tag: str, attributes: dict[str, str], above: "Element | None") -> None:
        self.tag, self.attributes, self.above = tag, attributes, above
        self.children: list[Element] = []
        self.pieces: list[str] = []

    def all(self, tag: str = "", cls: str = "") -> "list[Element]":
        """Itself aside, those below it with this tag and class."""
        found = []
        for child in self.children:
            if (not tag or child.tag == tag) and (not cls or cls in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(tag, cls)
        return found

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Page(HTMLParser):
    """`root` is what is above `<html>`; every start tag had its end tag, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = self._open = Element("", {}, None)
        self.feed(html)
        self.close()
        assert self._open is self.root, f"<{self._open.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self._open)
        self._open.children.append(element)
        if tag not in VOID:
            self._open = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.children.append(Element(tag, {name: value or "" for name, value in attrs}, self._open))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.tag == tag, f"</{tag}> closes <{self._open.tag}>"
        assert self._open.above is not None
        self._open = self._open.above

    def handle_data(self, data: str) -> None:
        at: Element | None = self._open
        while at is not None:
            at.pieces.append(data)
            at = at.above
