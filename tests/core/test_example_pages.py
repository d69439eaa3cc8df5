"""The whole agents of `docs/examples`, trained as they stand, but with a tiny model and one small step."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentlightning_torch.testing import tiny_model
from judge_server import judge_server, score, work

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs" / "examples").glob("*.md")), ROOT / "docs" / "rewards.md", ROOT / "docs" / "judges.md"]
EXAMPLES = len(PAGES) - 2
"""Whole agents; the rest are pages with an example in them."""
QUICK = ("langgraph-tools", "openai-client", "judges")
"""Pages that `make test` runs; `make test-slow` runs the others."""
JUDGE = "http://127.0.0.1:8001/v1"
"""Address of the judge in a page."""
NODE_PACKAGES = Path(os.environ.get("AGL_TEST_HARNESSES") or "nowhere", "node_modules")
BLOCK = re.compile(r"(?:Save this as `(?P<before>[\w.]+)`:\n\n)?```\w+\n(?:(?:#|//) (?P<first>[\w.]+\.\w+)\n)?(?P<text>.*?)```", re.DOTALL)


def files_of(page: Path) -> dict[str, str]:
    """The files that a page shows, by name."""
    blocks = [(block["before"] or block["first"], block["text"]) for block in BLOCK.finditer(page.read_text())]
    return {name: text for name, text in blocks if name}


def smaller(config: str, model: str) -> str:
    """The config with a tiny model and one step."""
    assert config.count('model = "smollm2-135m"') == 1
    config = config.replace('"smollm2-135m"', f'"{model}"').replace('"top:10"', '"full"')
    config = re.sub(r"^steps = \d+$", "steps = 1", config, flags=re.MULTILINE)
    config = re.sub(r"^tasks_per_step = \d+\n", "", config, flags=re.MULTILINE)
    config = re.sub(r"^every = \d+$", "every = 1\ntasks = 2", config, flags=re.MULTILINE)
    return "tasks_per_step = 1\n" + config


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=() if page.stem in QUICK else pytest.mark.slow) for page in PAGES])
def test_the_agent_of_a_page_trains(page: Path, tmp_path: Path) -> None:
    files = files_of(page)
    if "agent.ts" in files:
        if shutil.which("node") is None or not (NODE_PACKAGES / "tsx").is_dir():
            pytest.skip("no node, or AGL_TEST_HARNESSES names no folder with openai and tsx")
        (tmp_path / "node_modules").symlink_to(NODE_PACKAGES.resolve())
    model = tiny_model(tmp_path / "tiny", context=4096).path
    for name, text in files.items():
        (tmp_path / name).write_text(smaller(text, model) if name == "config.toml" else text)
    command = [sys.executable, "-m", "agentlightning", "train", "config.toml"]
    with judge_server(lambda body: score(len(work(body)) % 10)) as judge:
        config = tmp_path / "config.toml"
        config.write_text(config.read_text().replace(JUDGE, judge.base_url))
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert bool(judge.bodies) == ("[reward.judge]" in config.read_text())
    assert done.returncode == 0, done.stdout
    [result] = tmp_path.glob("runs/*/result.json")
    assert json.loads(result.read_text())["finished"] is True
    shown = subprocess.run([sys.executable, "-m", "agentlightning", "show"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "8 train rollouts" in shown.stdout
    assert "failed" not in shown.stdout


@pytest.mark.parametrize("page", PAGES[:EXAMPLES], ids=lambda page: page.stem)
def test_a_page_shows_a_config_an_agent_and_the_output_of_a_run(page: Path) -> None:
    files = files_of(page)
    config = tomllib.loads(files["config.toml"])
    agent = config["agent"].partition(":")[0] + ".py" if "agent" in config else config["command"].split(" ")[-1]
    assert agent in files
    assert "$ agl train config.toml" in page.read_text()
    assert "$ agl show latest" in page.read_text()
