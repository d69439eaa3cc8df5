"""The built page is fresh: it comes from exactly these sources, and nobody edited it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import agentlightning.page

PAGE = Path(agentlightning.page.__file__).parent
SOURCES = ("package.json", "package-lock.json", "build.mjs", "tsconfig.json", "index.html", "icon.svg")


def test_the_bundle_was_built_from_these_sources() -> None:
    web, static = PAGE / "web", PAGE / "static"
    built = json.loads((static / "build.json").read_text())
    digest = hashlib.sha256()
    for name in [*SOURCES, *(f"src/{file.name}" for file in sorted((web / "src").iterdir()))]:
        digest.update(f"{name}\0".encode() + (web / name).read_bytes() + b"\0")
    assert built.pop("sources") == digest.hexdigest(), "the page's sources changed: run `make page`"
    for name, expected in built.items():
        assert hashlib.sha256((static / name).read_bytes()).hexdigest() == expected, f"{name} was edited: run `make page`"


def test_the_bundle_needs_no_network_and_tells_its_licences() -> None:
    script = (PAGE / "static" / "app.js").read_text()
    assert "https://" not in script.replace("https://reactjs.org", "")
    licences = (PAGE / "static" / "licences.txt").read_text()
    assert all(re.search(rf"^{name} \d+\.\d+\.\d+ \(MIT\)$", licences, re.MULTILINE) for name in ("preact", "uplot"))
