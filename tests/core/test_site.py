"""The site of the documentation: `docs/build.py`, as `make docs` runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import agentlightning as agl

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(find_spec("zensical") is None, reason="the extra `docs` is not installed")
NAV = '[project]\nsite_name = "s"\ndocs_dir = "pages"\nsite_dir = "html"\nnav = ["index.md", "page.md"]\n'


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs" / "build.py"), str(site)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)


def small_site(root: Path, page: str, nav: str = NAV) -> subprocess.CompletedProcess[str]:
    """Build the site of a repository with a README and one page."""
    (root / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "build.py", root / "docs")
    (root / "docs" / "zensical.toml").write_text(nav)
    (root / "README.md").write_text("# Home\n\n[A page](docs/page.md#a-part), [code](code.py)\n")
    (root / "code.py").write_text("pass\n")
    (root / "docs" / "page.md").write_text(page)
    return build(root, root / "site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole site."""
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stdout
    return folder / "html"


def test_every_page_of_the_site_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        text = (site / page.relative_to(ROOT / "docs")).with_suffix(".html").read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\ssrc="([^"]+)"', text)
        loaded += re.findall(r'<link\b[^>]*\shref="([^"]+)"', text)
        assert loaded
        assert [address for address in loaded if address.startswith(("http:", "https:", "//"))] == [], page


def test_the_page_of_the_api_shows_every_public_name_with_its_docstring(site: Path) -> None:
    named = re.findall(r"^::: agentlightning\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(agl.__all__)
    text = (site / "api.html").read_text()
    for name in named:
        assert f'id="agentlightning.{name}"' in text, name
    assert "Train an agent" in text
    assert "Reward an attempt after its end" in text


def test_a_small_site_builds_with_its_links_to_pages_and_to_code(tmp_path: Path) -> None:
    built = small_site(tmp_path, "# Page\n\n## A part\n\n[Home](../README.md)\n\n```md\n[no link](nowhere.md)\n```\n")
    assert built.returncode == 0, built.stdout
    assert (tmp_path / "site" / "html" / "source" / "code.py.txt").read_text() == "pass\n"


@pytest.mark.parametrize(
    ("page", "nav", "message"),
    [
        ("# Page\n\n## A part\n\n[gone](gone.md)\n", NAV, "docs/page.md links to gone.md, which is no file"),
        ("# Page\n\n## Another part\n", NAV, "anchor does not exist"),
        ("# Page\n\n## A part\n", NAV.replace(', "page.md"', ""), "In no menu: page.md"),
        ("# Page\n\n## A part\n", NAV.replace('"page.md"', '"page.md", "old.md"'), "pages that do not exist: old.md"),
    ],
    ids=["a missing page", "a missing anchor", "a page in no menu", "a menu without a page"],
)
def test_the_build_fails_for_a_link_or_a_menu_that_leads_nowhere(tmp_path: Path, page: str, nav: str, message: str) -> None:
    built = small_site(tmp_path, page, nav)
    assert built.returncode != 0
    assert message in built.stdout
