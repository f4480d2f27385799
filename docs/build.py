"""Build the site in ``build/site``: pages, the course, the reference and the page without install.

    python docs/build.py

Needs no network. A missing page or anchor, in Markdown or in the HTML that comes out, is an error.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

ROOT = Path(__file__).resolve().parents[1]
DOCS, NOTEBOOKS = ROOT / "docs", ROOT / "notebooks"
SOURCE, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
sys.path.insert(0, str(ROOT))


def copy_pages() -> None:
    """Pages as they stand, their links to notebooks turned to the site's own pages."""
    shutil.copytree(DOCS, SOURCE, ignore=shutil.ignore_patterns("__pycache__", "browser"))
    shutil.copytree(NOTEBOOKS / "tables", SOURCE / "tables")
    shutil.copy(ROOT / "CHANGELOG.md", SOURCE.parent)
    for page in SOURCE.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"\]\(\.\./notebooks/(\d\d_\w+)\.ipynb\)", r"](course/\1.md)", text)
        text = text.replace("](../notebooks/tables/", "](tables/")
        page.write_text(text, encoding="utf-8")


def write_course() -> None:
    """The notebooks with their saved outputs, and a list of them."""
    from nbconvert import MarkdownExporter

    folder = SOURCE / "course"
    folder.mkdir()
    names = sorted(path.stem for path in NOTEBOOKS.glob("[01]*.ipynb"))
    for name in names:
        body, resources = MarkdownExporter().from_filename(
            str(NOTEBOOKS / f"{name}.ipynb"), resources={"unique_key": name}
        )
        body = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.md)", body)
        body = body.replace("](../docs/", "](../")
        body = re.sub(r"<style scoped>.*?</style>", "", body, flags=re.DOTALL)
        (folder / f"{name}.md").write_text(body, encoding="utf-8")
        for path, content in resources["outputs"].items():
            (folder / path).write_bytes(content)
    index = [
        "# The course",
        "Twelve lessons, each under ten minutes. `python3 dev.py lab` opens the first; here they "
        "are as saved, with pictures in place of what moves. Exercises check themselves: "
        '`tw.check("2.3", answer)`.',
        "```{toctree}\n:maxdepth: 1\n" + "\n".join(names) + "\n```",
    ]
    (folder / "index.md").write_text("\n\n".join(index), encoding="utf-8")


def write_reference() -> None:
    """Every public name, by the rooms of the package's stub."""
    tree = ast.parse((ROOT / "tsmc_widgets" / "__init__.pyi").read_text(encoding="utf-8"))
    rooms: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
            rooms.setdefault((node.module or "").split(".")[0], []).extend(names)
    import tsmc_widgets as tw

    parts = ["# Reference", "Every public name of `import tsmc_widgets as tw`."]
    for room, names in rooms.items():
        parts.append(f"## {room}")
        for name in sorted(names, key=str.lower):
            value = getattr(tw, name)
            kind = "class" if isinstance(value, type) else "function"
            if not callable(value):
                kind = "data"
            members = "\n   :members:" if kind == "class" else ""
            parts.append(f"```{{eval-rst}}\n.. auto{kind}:: tsmc_widgets.{name}{members}\n```")
    (SOURCE / "reference.md").write_text("\n\n".join(parts), encoding="utf-8")


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where a link leads, and each id."""
        given = dict(attrs)
        self.anchors |= {given.get("id") or "", given.get("name") or ""} - {""}
        self.links += [given[key] or "" for key in ("href", "src") if key in given]


def broken_links(site: Path) -> list[str]:
    """Links within the site that lead to no file or no anchor."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            name = unquote(urlsplit(address).path)
            goal = (path.parent / name).resolve() if name else path
            where = f"{path.relative_to(site)}: {link}"
            if not goal.is_file() and not (goal / "index.html").is_file():
                found.append(f"{where} (no such file)")
            elif anchor and goal in pages and unquote(anchor) not in pages[goal].anchors:
                found.append(f"{where} (no such anchor)")
    return found


def main() -> int:
    """Build and check; the exit status."""
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    copy_pages()
    write_course()
    write_reference()
    from docs.browser import build as browser

    browser.write(SOURCE / "extra" / "try.html")
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "auto"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*sphinx, str(SOURCE), str(SITE)], env=environment)
    if done.returncode:
        return done.returncode
    broken = broken_links(SITE)
    print("\n".join(broken) or f"{SITE.relative_to(ROOT)}: every link leads somewhere.")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
