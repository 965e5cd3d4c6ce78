"""Every link inside the built site leads somewhere, anchors included; no network: `python docs/links.py FOLDER`."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the anchors that it offers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(folder: Path) -> list[str]:
    """One line a link that leads nowhere."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            scheme, host, where, _, anchor = urlsplit(link)
            if scheme or host:
                continue
            target = (path.parent / unquote(where)).resolve() if where else path
            lost = not target.exists()
            if not lost and anchor and target in pages:
                lost = unquote(anchor) not in pages[target].anchors
            if lost:
                found.append(f"{path.relative_to(folder.resolve())}: {link}")
    return sorted(set(found))


if __name__ == "__main__":
    lines = broken(Path(sys.argv[1]))
    print("\n".join(lines) if lines else "every link inside the site leads somewhere")
    raise SystemExit(bool(lines))
