"""The public API has types: a consumer's file passes both checkers, and its mistakes are found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WRONG = {("mistakes.py", n) for n, line in enumerate((HERE / "mistakes.py").read_text().splitlines(), 1) if line.endswith("# wrong")}


def pyright(folder: Path) -> tuple[set[tuple[str, int]], str]:
    (folder / "pyrightconfig.json").write_text(
        f'{{"typeCheckingMode": "strict", "pythonVersion": "{sys.version_info.major}.{sys.version_info.minor}"}}'
    )
    command = [sys.executable, "-m", "pyright", "-p", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    output = subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout
    errors = [entry for entry in json.loads(output)["generalDiagnostics"] if entry["severity"] == "error"]
    return {(Path(entry["file"]).name, entry["range"]["start"]["line"] + 1) for entry in errors}, output


NOT_FOLLOWED = (
    "PIL anyio cryptography griffe httpcore httpcore2 httpx httpx2 jsonschema langgraph_sdk langsmith markdown_it mcp openai "
    "opentelemetry pydantic pytest _pytest requests rich starlette torch transformers urllib3 uvicorn websockets"
)
"""Packages whose types the public API does not need. mypy takes 30 seconds of CPU to read them; pyright reads them all."""


def mypy(folder: Path) -> tuple[set[tuple[str, int]], str]:
    patterns = ",".join(f"{name}.*" for name in NOT_FOLLOWED.split())
    (folder / "mypy.ini").write_text(f"[mypy]\n[mypy-{patterns}]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.11", "--cache-dir", str(ROOT / ".mypy_cache"), "."]
    output = subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout
    return {(name, int(line)) for name, line in re.findall(r"^([\w.]+):(\d+): error", output, re.MULTILINE)}, output


@pytest.mark.parametrize("check", [pyright, mypy])
def test_a_consumers_file_passes_a_strict_type_checker_and_its_mistakes_are_found(check, tmp_path: Path) -> None:
    for name in ("consumer.py", "mistakes.py"):
        (tmp_path / name).write_text((HERE / name).read_text())
    errors, output = check(tmp_path)
    assert errors == WRONG, output


def test_every_package_says_that_it_has_types() -> None:
    folders = ("core", "adapters", "plugins", "benchmarks")
    packages = [file.parent for folder in folders for file in ROOT.glob(f"{folder}/agentlightning*/__init__.py")]
    assert len(packages) >= 9
    assert [str(package) for package in packages if not (package / "py.typed").is_file()] == []
