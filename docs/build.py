"""Build the site of these pages into `.site/html`: python docs/build.py [FOLDER]

The pages also read well on a forge, so their links name files of the repository. The README becomes the first page. A linked page from
outside `docs` becomes a page of the site. A linked source file becomes a text file beside the pages, so the site needs no network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ASSETS = (".png", ".svg", ".ipynb")
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s#]+)(#[^)\s]*)?(?=\)|$)", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def place(file: Path) -> Path:
    """Return where a file of the repository goes below the pages."""
    if file == ROOT / "README.md":
        return Path("index.md")
    inside = file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT)
    return inside if file.suffix in (".md", *ASSETS) else Path("source") / inside.parent / f"{inside.name}.txt"


def write_page(file: Path, pages: Path) -> set[Path]:
    """Write a page with its links changed into `pages`, and return the files that it links to."""
    targets: set[Path] = set()

    def changed(link: re.Match[str]) -> str:
        start, target, anchor = link.group(1), link.group(2), link.group(3) or ""
        if "://" in target or target.startswith("mailto:"):
            return link.group()
        linked = (file.parent / target).resolve()
        if not linked.is_file():
            raise SystemExit(f"{file.relative_to(ROOT)} links to {target}, which is no file. Correct the link.")
        targets.add(linked)
        return f"{start}{os.path.relpath(place(linked), place(file).parent)}{anchor}"

    text = FENCE.split(file.read_text(encoding="utf-8"))
    text[::2] = [LINK.sub(changed, part) for part in text[::2]]
    page = pages / place(file)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("".join(text), encoding="utf-8")
    return targets


def write_pages(pages: Path) -> None:
    """Write the README, the pages of `docs`, and every file that they link to into `pages`."""
    waiting = {ROOT / "README.md", *DOCS.rglob("*.md")}
    done: set[Path] = set()
    while waiting:
        file = waiting.pop()
        done.add(file)
        if file.suffix == ".md":
            waiting |= write_page(file, pages) - done
        else:
            copy = pages / place(file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)


def pages_of(nav: list[object]) -> set[str]:
    """Return the pages that a navigation names."""
    pages: set[str] = set()
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            pages |= pages_of(value) if isinstance(value, list) else {str(value)}
    return pages


def check_navigation(config: Path, pages: Path) -> None:
    """Stop if a page of `docs` is in no menu, or a menu names a page that does not exist."""
    named = pages_of(tomllib.loads(config.read_text())["project"]["nav"])
    written = {place(file).as_posix() for file in DOCS.rglob("*.md")}
    if missing := written - named:
        raise SystemExit(f"In no menu: {', '.join(sorted(missing))}. Add each to nav in docs/zensical.toml.")
    if unknown := sorted(page for page in named if not (pages / page).is_file()):
        raise SystemExit(f"nav in docs/zensical.toml names pages that do not exist: {', '.join(unknown)}. Remove them.")


def main(arguments: list[str]) -> int:
    site = Path(arguments[0]).resolve() if arguments else ROOT / ".site"
    shutil.rmtree(site, ignore_errors=True)
    write_pages(site / "pages")
    text = (DOCS / "zensical.toml").read_text(encoding="utf-8")
    config = site / "zensical.toml"
    config.write_text(text.replace("../core", str(ROOT / "core")), encoding="utf-8")
    check_navigation(config, site / "pages")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(config)]
    return subprocess.run(command, check=False).returncode  # noqa: S603  # our own command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
